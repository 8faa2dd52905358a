"""The category layer: fitted by itself on what the trained encoder makes of unsafe rows.

Categories differ a hundredfold in rows, so one pass of gradient steps learns the large ones alone. A multinomial
logistic regression on the pooled vectors, in which every category counts alike, also finds the rare ones.
"""

from __future__ import annotations

import numpy as np
import torch
from fit import run_all, window_of
from network import WIDTH, Network
from rows import CODES, Example
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer
from torch import nn

TEXT_TOKENS = 100
REGULARISATION = 0.003
LEAST_SPREAD = 0.05  # a tenth of what is usual; divided by less, a place that hardly varies is all rounding in int8


def pooled(network: Network, tokenizer: Tokenizer, examples: list[Example], limit: int) -> np.ndarray:
    """Runs the encoder without the head; float32 [rows, 2 * width]."""
    network.eval()
    return run_all(network.encode, [window_of(tokenizer, example, limit) for example in examples], 2 * WIDTH)


def fit_categories(network: Network, tokenizer: Tokenizer, examples: list[Example]) -> nn.Linear:
    """Fits the layer on the unsafe rows with a known category; a row of several categories counts as its first.

    Returns:
        A layer from the pooled vector to one value a category; a category without rows gets a very low one.
    """
    # An opening such as "Sure, here is how" has the category of its prompt, and would teach it of such words.
    named = [example for example in examples if example.is_unsafe and example.codes and example.source != "answers"]
    vectors = pooled(network, tokenizer, named, TEXT_TOKENS)
    target = np.array([CODES.index((example.codes or ())[0]) for example in named])
    mean, spread = vectors.mean(0), np.maximum(vectors.std(0), LEAST_SPREAD)
    model = LogisticRegression(C=REGULARISATION, max_iter=1000, class_weight="balanced")
    model.fit((vectors - mean) / spread, target)
    weight, bias = np.zeros((len(CODES), vectors.shape[1])), np.full(len(CODES), -20.0)
    weight[model.classes_] = model.coef_ / spread
    bias[model.classes_] = model.intercept_ - (model.coef_ * (mean / spread)).sum(1)
    layer = nn.Linear(vectors.shape[1], len(CODES))
    layer.weight.data, layer.bias.data = torch.tensor(weight).float(), torch.tensor(bias).float()
    return layer.requires_grad_(False)
