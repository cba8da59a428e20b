"""The count of operations: by hand, and against PyTorch's own counter on a real forward."""


import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tagsds.data.pairs import Images, Pairs
from tagsds.data.ragged import Ragged
from tagsds.estimate.work import Sizes, Stream
from tagsds.models import UniterConfig, UniterModel
from tagsds.models.uniter import Layout
from tests.bench.operations import Call, flop_of, layer_stream, parts, recorded, sizes_of, summed, table_stream
from tests.bench.rates import Product, Rates, products_of
from tests.bench.switch import references

TINY = Sizes(layers=3, hidden=4, intermediate=8, heads=2, vocabulary=10)
WIDTH = 5  # of a feature


def pairs_of(texts: list[int], images: list[int], held: list[tuple[int, int]], width: int = WIDTH) -> Pairs:
    words, regions = sum(texts), sum(images)
    table = Images(Ragged(torch.randn(regions, width), torch.tensor(images)), torch.rand(regions, 7))
    text, image = torch.tensor(held).T
    return Pairs(Ragged(torch.randint(1, 9, (words,)), torch.tensor(texts)), table, text, image)


def test_by_hand():
    """Texts of 3 and 4 pieces, images of 2 and 5 regions; pairs of 5, 8 and 9 tokens: 22 tokens, 170 squares. H = 4, F = 8."""
    pairs = pairs_of([3, 4], [2, 5], [(0, 0), (0, 1), (1, 1)])
    keep = Layout.of(pairs).cls()
    assert table_stream(pairs.texts, pairs.images) == Stream(regions=7, rows=14)
    layers = layer_stream(pairs, keep)
    assert layers == Stream(tokens=22, squares=170, keep=3, seen=22)
    features = 7 * 2 * 5 * 4  # 280
    rows = 14 * 6 * 16  # 1,344: q, k, v of the first layer
    first = 22 * (2 * 16 + 4 * 4 * 8) + 4 * 4 * 170  # output, feed-forward, attention: 3,520 + 2,720
    second = first + 22 * 6 * 16  # and q, k, v: 8,352
    last = 22 * 4 * 16 + 3 * (2 * 16 + 2 * 16 + 4 * 4 * 8) + 4 * 4 * 22  # k and v of all, the rest of [CLS]: 1,408 + 576 + 352
    words = 2 * (2 * 16 + 2 * 4 * 10)  # 224
    forward = features + rows + first + second + last + words
    assert forward == 280 + 1344 + 6240 + 8352 + 2336 + 224
    stream = summed([table_stream(pairs.texts, pairs.images), layers, Stream(words=2)])
    assert stream.flop(TINY, WIDTH) == forward == sum(parts(stream, TINY, WIDTH).values())
    assert stream.flop_with_gradient(TINY, WIDTH) == 3 * forward - 280
    calls = [Call(stream, "fp32", False), Call(stream, "fp32", True)]
    assert flop_of(calls, TINY, WIDTH) == 4 * forward - 280
    products = products_of(calls[:1], TINY, WIDTH)  # all but attention
    assert sum(products.values()) == pytest.approx(forward - 4 * 4 * (2 * 170 + 22))


def model_of(**changes) -> UniterModel:
    sizes = dict(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=40, region_dim=12,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_region_classes=0,
    )  # fmt: skip
    return UniterModel(UniterConfig(**(sizes | changes)))


@pytest.mark.parametrize("layers", [1, 3])
def test_as_pytorch_counts_a_forward(layers):
    """Pairs of one length, so that nothing is padded. PyTorch's counter sees box vectors, the queries of the last layer that
    nothing reads, and the heads on [CLS], too; they are known."""
    model = model_of(num_hidden_layers=layers).eval()
    sizes = sizes_of(model)
    pairs = pairs_of([6, 6], [4, 4], [(0, 0), (0, 1), (1, 0), (1, 1), (1, 0)], width=12)
    keep = Layout.of(pairs).cls()
    written_out = sdpa_kernel(SDPBackend.MATH)  # the counter does not know the fused kernel of a CPU
    with references(), written_out, torch.no_grad(), recorded(model) as calls, FlopCounterMode(display=False) as counter:
        states = model(pairs, keep)
        model.mlm(states[:2])
    assert [call.pairs for call in calls if call.pairs] == [5] and not any(call.gradient for call in calls)
    stream = summed([call.stream for call in calls])
    boxes = 8 * 2 * 7 * 16
    least = flop_of(calls, sizes, 12)
    assert least <= counter.get_total_flops() - boxes <= least + stream.tokens * 2 * sizes.hidden**2


def test_a_recorded_step_counts_what_it_forwards():
    from tests.bench.run import parse
    from tests.bench.variants import Variants

    variants = Variants(parse(["--preset", "tiny"]))
    with recorded(variants.model) as calls:
        output = variants.objective(variants.bank, variants.captions, variants.draw)
    assert sum(call.pairs for call in calls) == output.forwards
    trained = [call for call in calls if call.gradient and call.pairs]
    assert len(trained) == 1 and trained[0].stream.keep > trained[0].pairs  # words beside [CLS]
    assert {call.precision for call in calls} == {"fp32"}


def test_ideal_seconds_divide_by_the_rate(monkeypatch):
    """With 100 FLOP a second everywhere, and twice that in bf16."""
    monkeypatch.setattr(Rates, "_measure", lambda self, p: 200.0 if p.precision == "bf16" else 100.0)
    stream = Stream(regions=7, rows=14, tokens=22, squares=170, keep=3, seen=22, words=2)
    calls = [Call(stream, "fp32", True), Call(stream, "bf16", False)]
    rates = Rates(torch.device("cpu"))
    expected = stream.flop_with_gradient(TINY, WIDTH) / 100 + stream.flop(TINY, WIDTH) / 200
    assert rates.ideal_seconds(calls, TINY, WIDTH) == pytest.approx(expected)


def test_a_rate_is_operations_over_time():
    rates = Rates(torch.device("cpu"), least_s=0.0)
    assert rates.of(Product("fp32", False, 64, 32, 48)) > 0 and rates.of(Product("bf16", True, 8, 16, 24)) > 0
    assert len(rates.measured) == 2
