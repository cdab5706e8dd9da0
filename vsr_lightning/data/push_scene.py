"""The scene of simulated robot pushing as a MuJoCo model: `push_scene.xml` and a pool of small, colourful objects.

The pool, its textures and the tray's lining are the same in every trajectory, as in BAIR, where the same things lie
about for weeks. An edit that changes a picture raises `push_simulator.VERSION`.

Textures are uint8 (H, W, 3); lengths in metres.
"""

import io
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

POOL_SIZE = 40
TRAY_HALF = 0.22  # the tray's floor is a square of twice this
OBJECT_RADIUS = 0.022  # the unit of an object's shape, before its size varies
TEXTURE_PIXELS = 64
LINING_PIXELS = 512

_POOL_SEED = 20_170_814  # chooses sizes, colours and textures, once and for all
_VIVID = np.array(
    [
        *([226, 34, 40], [250, 205, 30], [28, 92, 214], [24, 160, 70], [245, 245, 240], [18, 18, 22]),
        *([238, 120, 20], [150, 40, 170], [240, 110, 170], [40, 190, 210], [130, 82, 45], [170, 220, 60]),
    ]
)
_CLOTH = np.array([[204, 184, 150], [84, 100, 128], [236, 230, 216], [128, 84, 70]])
_GREYS = np.array([[70, 74, 82], [104, 108, 112], [52, 54, 60]])


def make_model(mujoco: Any) -> Any:
    """The compiled model (mujoco.MjModel), all objects of the pool parked behind and below the tray."""
    rng = np.random.default_rng(_POOL_SEED)
    spec = mujoco.MjSpec.from_string(resources.files(__package__).joinpath("push_scene.xml").read_text("utf-8"))
    cube, flat = mujoco.mjtTexture.mjTEXTURE_CUBE, mujoco.mjtTexture.mjTEXTURE_2D
    _add_material(spec, "lining", lining(rng), flat)
    _add_material(spec, "backdrop", blotches(rng, _GREYS, 4), flat, repeat=6)
    _add_material(spec, "wall", wood(rng), cube)
    _add_material(spec, "link", stripes(rng, _VIVID[[0, 5]], 6, 0.0), cube)
    for index in range(POOL_SIZE):
        name = object_name(index)
        for part in range(2):
            _add_material(spec, f"{name}_{part}", object_texture(rng), cube)
        body = spec.worldbody.add_body(name=name, pos=[0.1 * index - 2, 3, -1])
        body.add_freejoint(name=f"{name}_joint")
        shape = SHAPES[index % len(SHAPES)]
        for part, geom in enumerate(shape(OBJECT_RADIUS * rng.uniform(0.8, 1.2))):
            geom["type"] = getattr(mujoco.mjtGeom, f"mjGEOM_{geom['type'].upper()}")
            body.add_geom(spec.find_default("object"), material=f"{name}_{part}", **geom)
    return spec.compile()


def object_name(index: int) -> str:
    """The body, and with the suffix "_joint" the free joint, of one object of the pool."""
    return f"object{index}"


def _add_material(spec: Any, name: str, texture: np.ndarray, kind: Any, repeat: int = 1) -> None:
    buffer = io.BytesIO()
    Image.fromarray(texture).save(buffer, "png")
    spec.assets[f"{name}.png"] = buffer.getvalue()
    spec.add_texture(name=name, type=kind, file=f"{name}.png")
    material = spec.add_material(name=name, specular=0.1, shininess=0.2, texrepeat=[repeat, repeat])
    material.textures[1] = name  # mjTEXROLE_RGB


# ---------------------------------------------------------------------------------------------------------
# Shapes: the geoms of an object of radius r, at most two

Geom = dict[str, Any]
LYING = [0.0, np.pi / 2, 0.0]  # turns the axis of a cylinder or capsule from z to x


def _cup(r: float) -> Iterator[Geom]:
    yield {"type": "cylinder", "size": [r, 1.1 * r, 0]}
    yield {"type": "box", "size": [0.35 * r, 0.18 * r, 0.7 * r], "pos": [1.3 * r, 0, 0]}


def _block(r: float) -> Iterator[Geom]:
    yield {"type": "box", "size": [1.4 * r, 0.8 * r, 0.7 * r]}


def _duck(r: float) -> Iterator[Geom]:
    yield {"type": "ellipsoid", "size": [1.4 * r, r, 0.8 * r]}
    yield {"type": "sphere", "size": [0.7 * r, 0, 0], "pos": [0.9 * r, 0, 0.9 * r]}


def _brush(r: float) -> Iterator[Geom]:
    yield {"type": "capsule", "size": [0.4 * r, 1.6 * r, 0], "euler": LYING}
    yield {"type": "box", "size": [0.8 * r, 0.8 * r, 0.55 * r], "pos": [2 * r, 0, 0]}


def _ball(r: float) -> Iterator[Geom]:
    yield {"type": "ellipsoid", "size": [1.1 * r, 1.1 * r, 1.05 * r]}


def _plate(r: float) -> Iterator[Geom]:
    yield {"type": "cylinder", "size": [1.8 * r, 0.3 * r, 0]}
    yield {"type": "cylinder", "size": [0.9 * r, 0.25 * r, 0], "pos": [0, 0, 0.5 * r]}


def _cross(r: float) -> Iterator[Geom]:
    yield {"type": "box", "size": [1.9 * r, 0.5 * r, 0.45 * r]}
    yield {"type": "box", "size": [0.5 * r, 1.6 * r, 0.45 * r]}


def _bottle(r: float) -> Iterator[Geom]:
    yield {"type": "capsule", "size": [0.75 * r, 1.2 * r, 0], "euler": LYING}
    yield {"type": "cylinder", "size": [0.35 * r, 0.5 * r, 0], "pos": [2.3 * r, 0, 0], "euler": LYING}


SHAPES: tuple[Callable[[float], Iterator[Geom]], ...] = (_cup, _block, _duck, _brush, _ball, _plate, _cross, _bottle)

# ---------------------------------------------------------------------------------------------------------
# Textures


def object_texture(rng: np.random.Generator) -> np.ndarray:
    """Stripes, checks, dots or blotches in two or three vivid colours."""
    colours = _VIVID[rng.choice(len(_VIVID), 3, replace=False)]
    kind = rng.choice(["stripes", "checks", "dots", "blotches"])
    if kind == "stripes":
        return stripes(rng, colours[:2], int(rng.integers(3, 6)), rng.uniform(0, np.pi))
    if kind == "blotches":
        return blotches(rng, colours, 5)
    y, x = np.mgrid[:TEXTURE_PIXELS, :TEXTURE_PIXELS] / TEXTURE_PIXELS * rng.integers(2, 6)
    if kind == "checks":
        return colours[(x.astype(int) + y.astype(int)) % 2].astype(np.uint8)
    return colours[((x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 < 0.1).astype(int)].astype(np.uint8)


def stripes(rng: np.random.Generator, colours: np.ndarray, count: int, angle: float) -> np.ndarray:
    y, x = np.mgrid[:TEXTURE_PIXELS, :TEXTURE_PIXELS] / TEXTURE_PIXELS
    phase = count * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform()
    return colours[np.floor(2 * phase).astype(int) % len(colours)].astype(np.uint8)


def blotches(rng: np.random.Generator, colours: np.ndarray, width: float, pixels: int = TEXTURE_PIXELS) -> np.ndarray:
    """Irregular patches of each colour, about `width` texture pixels wide."""
    fields = [ndimage.gaussian_filter(rng.standard_normal((pixels, pixels)), width, mode="wrap") for _ in colours]
    return colours[np.argmax(fields, axis=0)].astype(np.uint8)


def lining(rng: np.random.Generator) -> np.ndarray:
    """The cloth in the tray: patches of four colours, with a fine weave and stains.

    Its contrast is what makes bicubic upsampling lose as much as on real BAIR clips.
    """
    size = LINING_PIXELS
    y, x = np.mgrid[:size, :size]
    weave = 16 * ((x // 6 + y // 6) % 2) - 8
    stains = 40 * ndimage.gaussian_filter(rng.standard_normal((size, size)), 2)
    return np.clip(blotches(rng, _CLOTH, 22, size) + (weave + stains)[..., None], 0, 255).astype(np.uint8)


def wood(rng: np.random.Generator) -> np.ndarray:
    grain = ndimage.gaussian_filter(rng.standard_normal((TEXTURE_PIXELS, TEXTURE_PIXELS)), (1, 12), mode="wrap") * 300
    return np.clip(np.array([150, 105, 62]) + grain[..., None], 0, 255).astype(np.uint8)
