"""Columns that several published tables share, and how their numbers count."""

from __future__ import annotations

from .base import Column

MME_SUM = Column("mme", "MME", "mme", "perception + cognition, points of 2800", "total")
MME_PERCEPTION = Column("mme", "MME", "mme", "perception only, points of 2000", "perception")
MMB = Column("mmb", "MMB", "mmbench", "dev, circular accuracy")
MMB_CN = Column("mmb_cn", "MMB-CN", "mmbench_cn", "dev, circular accuracy")
SQA = Column("sqa", "SQA", "scienceqa", "test, accuracy on the questions with an image")
GQA = Column("gqa", "GQA", "gqa", "testdev balanced, exact answers")
TEXTVQA = Column("textvqa", "TextVQA", "textvqa", "validation, with OCR tokens in the prompt")
POPE = Column("pope", "POPE", "pope", "mean F1 of random, popular and adversarial")
SENNA = Column(
    "senna",
    "planning accuracy",
    "senna",
    "not printed; both words of the plan occur in the answer",
    "planning_accuracy",
)
VQAV2 = Column("vqav2", "VQAv2", "vqav2", "published: test-dev, by its server; measured: val2014")
