"""GroundingDINO's two implementations behind one call: (pixels, mask, text) -> (logits, boxes), same numbers from the same weights.

    model = BACKENDS["groundingdino-py"](config, state, tokenizer, file)

Six things stand between the two. Each is worked around on these models alone, other users of the same classes see nothing of it:

- The package borrows three methods of transformers' BertModel, which transformers 5 changed and dropped (IDEA-Research/GroundingDINO
  issue 446).
- Its builder knows Swin's published sizes only and downloads bert-base-uncased: the model is put together from its parts instead.
- Where the texts of a batch differ it gives a text the mask of another: the answer depended on the batch. The port does not.
- On some versions of transformers 5 the port counts a full stop as the first token of its phrase and not as the last (seen on 5.0.0 and
  5.9.0), or rounds the waves that tell a token's place to whole numbers (5.9.0; neither on 4.57.6 and 5.23.0). With random weights
  boxes move by up to 0.9 of the image. It is given the places of all tokens, as floats.
- The package needs torchvision, whose native part does not load where it is a CUDA build beside a CPU torch.
- Before it refines a box the package keeps coordinates 1e-3 away from 0 and 1, the port 1e-5. The weights were trained with 1e-3, so the
  port is run with that too; else the two differ for boxes that come that close to a border of the image, or to a point.

One thing is left, and is so between any two machines or sizes of a batch too: the proposals are ranked before they are refined, and
two that score the same to the seventh digit may change places. A query's rank is part of what it starts from.
"""

import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from repro.gaze.grounding_dino_weights import COPY, SEPARATORS, UNUSED, refuse, to_package
from repro.machine import UserError

NEEDED = ("groundingdino", "torchvision", "timm", "addict", "yapf", "supervision", "pycocotools")

# --------------------------------------------------------------------------------------------- transformers' port


class Port(torch.nn.Module):
    """transformers' GroundingDinoForObjectDetection."""

    def __init__(self, model):
        super().__init__()
        self.model, self.places = model, None
        model.model.text_backbone.register_forward_pre_hook(lambda _, args: (*args[:3], self.places, *args[4:]))
        model.model.encoder.register_forward_pre_hook(self._placed, with_kwargs=True)

    def _placed(self, _, args: tuple, kwargs: dict):
        return args, kwargs | {"text_position_ids": self.places.float()}

    def forward(self, pixels, mask, text):
        ids = text["input_ids"]
        self.places = places(ids)
        with _Clamp():
            out = self.model(pixel_values=pixels, pixel_mask=mask.long(), input_ids=ids, attention_mask=text["attention_mask"],
                             token_type_ids=torch.zeros_like(ids))  # fmt: skip
        return out.logits, out.pred_boxes


def places(ids: torch.Tensor) -> torch.Tensor:
    """Where each token (B, T) stands in its phrase, from 0; the separator that closes a phrase is the last of it."""
    index = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    separator = torch.isin(ids, torch.tensor(list(SEPARATORS.values()), device=ids.device))
    last = torch.where(separator, index, -1).cummax(dim=1).values  # the separator at or before each token
    before = torch.nn.functional.pad(last[:, :-1], (1, 0), value=-1)
    return torch.where(separator.int().flip(1).cumsum(1).flip(1) > 0, index - before - 1, 0)  # 0 beyond the end of a shorter text


class _Clamp(TorchFunctionMode):
    """While active, torch.special.logit keeps its argument as far from 0 and 1 as the package's inverse_sigmoid does."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.special.logit:
            x = args[0].clamp(0, 1)
            return torch.log(x.clamp(min=1e-3) / (1 - x).clamp(min=1e-3))
        return func(*args, **(kwargs or {}))


def port(config, state: dict, tokenizer, file: Path) -> Port:
    """transformers' model with the weights `state`; UserError that names every tensor that is missing, unexpected or misshapen."""
    if importlib.util.find_spec("torchvision"):
        import_torchvision()  # one that does not load would break the import of the model
    from transformers import GroundingDinoForObjectDetection

    with quiet():
        model, about = GroundingDinoForObjectDetection.from_pretrained(
            None, config=config, state_dict=dict(state), output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
        )
    missing = {COPY.sub("bbox_embed.0.", name) for name in about["missing_keys"] if not UNUSED.match(name)}
    own = model.state_dict()  # transformers 4 gives names alone, transformers 5 (name, found shape, expected shape)
    shapes = [(bad, state[bad].shape, own[bad].shape) if isinstance(bad, str) else bad for bad in about["mismatched_keys"]]
    misshapen = [f"{name} is {tuple(found)}, not {tuple(expected)}" for name, found, expected in shapes]
    refuse(file, missing=missing - set(state), unexpected=about["unexpected_keys"], misshapen=misshapen)
    return Port(model)


@contextmanager
def quiet():
    """Without transformers' own report on what it loads: `refuse` says it."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


# ---------------------------------------------------------------------------------------------- the original package


class Original(torch.nn.Module):
    """The package's GroundingDINO."""

    def __init__(self, model, nested):
        super().__init__()
        self.model, self.nested = model, nested

    def forward(self, pixels, mask, text):
        self.model.tokenizer = lambda captions, **options: text  # it has been read already
        out = self.model(self.nested(pixels, ~mask), captions=[""] * len(pixels))
        return out["pred_logits"], out["pred_boxes"]


def original(config, state: dict, tokenizer, file: Path) -> Original:
    """The package's model with the weights `state`; UserErrors as `port`'s, and where the package is not (wholly) installed."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError("The package groundingdino-py cannot be used.", expected=f"the packages {', '.join(NEEDED)}",
                        found=f"without {', '.join(absent)}", next_step="pip install --no-deps -r requirements-groundingdino.txt, or use "
                        'backend="transformers"')  # fmt: skip
    import_torchvision()
    from groundingdino.util.misc import NestedTensor

    model = _built(config, tokenizer)
    own, given = model.state_dict(), to_package(state)
    source = {name: COPY.sub("bbox_embed.0.", name) for name in own if not UNUSED.match(name)}
    wanted = set(source.values())
    misshapen = [f"{name} is {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
                 for name in wanted & set(given) if given[name].shape != own[name].shape]  # fmt: skip
    refuse(file, missing=wanted - set(given), unexpected=set(given) - wanted, misshapen=misshapen)
    model.load_state_dict({name: given[other] for name, other in source.items()}, strict=False)  # the text pooler is not used
    for layer in model.transformer.encoder.text_layers:
        layer.register_forward_pre_hook(_own_mask, with_kwargs=True)
    return Original(model, NestedTensor)


def _built(config, tokenizer):
    """The package's model of a transformers config, without weights."""
    from groundingdino.models.GroundingDINO.backbone.backbone import Joiner
    from groundingdino.models.GroundingDINO.backbone.position_encoding import build_position_encoding
    from groundingdino.models.GroundingDINO.backbone.swin_transformer import SwinTransformer
    from groundingdino.models.GroundingDINO.groundingdino import GroundingDINO
    from groundingdino.models.GroundingDINO.transformer import Transformer
    from groundingdino.util import get_tokenlizer
    from transformers import BertModel

    swin, heat = config.backbone_config, config.positional_embedding_temperature
    levels = tuple(i - 1 for i in swin.out_indices)  # transformers counts the patches as level 0
    body = SwinTransformer(pretrain_img_size=swin.image_size, embed_dim=swin.embed_dim, depths=swin.depths, num_heads=swin.num_heads,
                           window_size=swin.window_size, mlp_ratio=swin.mlp_ratio, out_indices=levels)  # fmt: skip
    place = SimpleNamespace(hidden_dim=config.d_model, position_embedding="sine", pe_temperatureH=heat, pe_temperatureW=heat)
    backbone = Joiner(body, build_position_encoding(place))
    backbone.num_channels = [body.num_features[i] for i in levels]
    transformer = Transformer(
        d_model=config.d_model, nhead=config.encoder_attention_heads, num_queries=config.num_queries, dropout=0.0, text_dropout=0.0,
        num_encoder_layers=config.encoder_layers, num_decoder_layers=config.decoder_layers, dim_feedforward=config.encoder_ffn_dim,
        activation=config.activation_function, return_intermediate_dec=True, num_feature_levels=config.num_feature_levels,
        enc_n_points=config.encoder_n_points, dec_n_points=config.decoder_n_points, learnable_tgt_init=True, two_stage_type="standard",
        embed_init_tgt=True, use_text_enhancer=True, use_fusion_layer=True, use_text_cross_attention=True, fusion_dropout=0.0)  # fmt: skip
    bert = _with_masks(BertModel(config.text_config))
    with mock.patch.multiple(get_tokenlizer, get_tokenlizer=lambda _: tokenizer, get_pretrained_language_model=lambda _: bert):
        return GroundingDINO(backbone, transformer, config.num_queries, iter_update=True, query_dim=4, two_stage_type="standard",
                             num_feature_levels=config.num_feature_levels, nheads=config.encoder_attention_heads, dn_number=0,
                             two_stage_bbox_embed_share=False, two_stage_class_embed_share=False)  # fmt: skip


def _with_masks(bert):
    """This BertModel with the three methods that the package takes from it.

    On transformers 5 all three are replaced: some of its versions have one left, whose third argument has become the dtype.
    """
    import transformers

    def additive(mask, *_, **__):
        mask = mask[:, None] if mask.dim() == 3 else mask[:, None, None]
        return (1.0 - mask.float()) * torch.finfo(torch.float32).min

    def head_mask(mask, layers, *_):
        assert mask is None, "GroundingDINO masks no heads"
        return [None] * layers

    if int(transformers.__version__.split(".")[0]) >= 5:
        bert.get_extended_attention_mask = bert.invert_attention_mask = additive
        bert.get_head_mask = head_mask
    return bert


def _own_mask(layer, args: tuple, kwargs: dict):
    """Before a text layer: the masks (B, tokens, tokens) in the order of the attention's batch, text by text and not head by head."""
    return args, kwargs | {"src_mask": kwargs["src_mask"].repeat_interleave(layer.nhead, dim=0)}


BACKENDS = {"transformers": port, "groundingdino-py": original}

# ------------------------------------------------------------------------------------------------------ torchvision

_LIBRARIES = []  # torch forgets the operators of a library that is not kept


def import_torchvision() -> None:
    """Import torchvision; where its native part does not load, and says so in just these words, with nms in plain torch."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", nms, "CPU")
        _LIBRARIES.append(library)
        import torchvision  # noqa: F401


def nms(boxes: torch.Tensor, scores: torch.Tensor, overlap: float) -> torch.Tensor:
    """Indices, best first, of the boxes (N, 4) that no better kept one overlaps by more than `overlap` (intersection over union)."""
    area, order, kept = (boxes[:, 2:] - boxes[:, :2]).prod(1), scores.argsort(descending=True), []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        size = (torch.minimum(boxes[order, 2:], boxes[best, 2:]) - torch.maximum(boxes[order, :2], boxes[best, :2])).clamp(min=0).prod(1)
        order = order[size <= overlap * (area[order] + area[best] - size)]
    return torch.stack(kept) if kept else order
