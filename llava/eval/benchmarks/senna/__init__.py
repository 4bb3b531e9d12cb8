"""Senna's driving plans: how they are asked, labelled and scored. Needs no model."""
