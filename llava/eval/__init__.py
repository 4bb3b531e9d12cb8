"""Answers benchmark questions with a LLaVA checkpoint and scores the answers."""
