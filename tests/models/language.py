"""BERT encoders (arXiv 1810.04805) with made-up weights."""
import numpy as np

from builder import FLOAT, INT64, Builder

VOCABULARY = 30522
POSITIONS = 512


def layer_norm(g: Builder, x: str, hidden: int) -> str:
    ones, zeros = np.ones(hidden, np.float32), np.zeros(hidden, np.float32)
    return g.node("LayerNormalization", x, g.constant(ones), g.constant(zeros), axis=-1, epsilon=1e-12)


def gelu(g: Builder, x: str) -> str:
    erf = g.node("Erf", g.node("Div", x, g.constant(np.float32(2**0.5))))
    half = g.node("Mul", x, g.constant(np.float32(0.5)))
    return g.node("Mul", half, g.node("Add", erf, g.constant(np.float32(1))))


def embed(g: Builder, hidden: int) -> str:
    words = g.node("Gather", g.normal((VOCABULARY, hidden), 0.02), "input_ids")
    kinds = g.node("Gather", g.normal((2, hidden), 0.02), "token_type_ids")
    length = g.node("Slice", g.node("Shape", "input_ids"), *(g.constant(np.array([v], np.int64)) for v in (1, 2)))
    table = g.normal((POSITIONS, hidden), 0.02)
    places = g.node("Slice", table, g.constant(np.array([0], np.int64)), length, g.constant(np.array([0], np.int64)))
    return layer_norm(g, g.node("Add", g.node("Add", words, kinds), places), hidden)


def attention(g: Builder, x: str, mask: str, hidden: int, heads: int) -> str:
    split = g.constant(np.array([0, 0, heads, hidden // heads], np.int64))
    by_head = lambda t, perm: g.node("Transpose", g.node("Reshape", t, split), perm=perm)
    query, key, value = (g.linear(x, hidden, hidden) for _ in range(3))
    scores = g.node("MatMul", by_head(query, [0, 2, 1, 3]), by_head(key, [0, 2, 3, 1]))
    scores = g.node("Div", scores, g.constant(np.float32((hidden // heads) ** 0.5)))
    weights = g.node("Softmax", g.node("Add", scores, mask), axis=-1)
    mixed = g.node("Transpose", g.node("MatMul", weights, by_head(value, [0, 2, 1, 3])), perm=[0, 2, 1, 3])
    return g.linear(g.node("Reshape", mixed, g.constant(np.array([0, 0, hidden], np.int64))), hidden, hidden)


def attention_mask(g: Builder) -> str:
    """0 where a token is to be seen, a large negative number where it is padding; [batch, 1, 1, sequence]."""
    seen = g.cast("attention_mask", FLOAT)
    wide = g.node("Unsqueeze", seen, g.constant(np.array([1, 2], np.int64)))
    hidden = g.node("Sub", g.constant(np.float32(1)), wide)
    return g.node("Mul", hidden, g.constant(np.float32(-10000)))


def bert(layers: int, hidden: int, heads: int, name: str):
    g = Builder(layers)
    x = embed(g, hidden)
    mask = attention_mask(g)
    for _ in range(layers):
        x = layer_norm(g, g.node("Add", x, attention(g, x, mask, hidden, heads)), hidden)
        wide = gelu(g, g.linear(x, hidden, hidden * 4))
        x = layer_norm(g, g.node("Add", x, g.linear(wide, hidden * 4, hidden)), hidden)
    g.node("Identity", x, to="last_hidden_state")
    first = g.node("Gather", x, g.constant(np.int64(0)), axis=1)
    g.node("Tanh", g.linear(first, hidden, hidden), to="pooler_output")
    tokens = ["batch", "sequence"]
    inputs = [(n, INT64, tokens) for n in ("input_ids", "attention_mask", "token_type_ids")]
    outputs = [("last_hidden_state", FLOAT, [*tokens, hidden]), ("pooler_output", FLOAT, ["batch", hidden])]
    return g.model(name, inputs, outputs)
