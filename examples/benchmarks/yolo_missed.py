"""What networks that `yolo.py` made miss of the original's objects, one by one, in any folder of images.

`yolo.py` measures on images that a network has not seen; this tells as well what it finds in those that it
was trained on, so that what it has not learned can be told from what it has not been shown. Objects
and findings are as in `yolo.py`. Networks are `.safetensors` of its `--work`, or files of de_plugin, named
`*.de.safetensors`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rows import opened, versions, write
from safetensors import SafetensorError
from safetensors.torch import load_file
from yolo_run import Row, found
from yolo_settings import digest, together

import de_plugin
from de_plugin.errors import DEError
from de_plugin.zoo import Darknet, Detection, Photos, darknet, missed, photo_files, read_photos, retention


def network(options: argparse.Namespace, path: Path) -> Darknet:
    """Return a network that a run of `yolo.py` kept, or its file."""
    model = darknet(options.cfg).to(options.device)
    try:
        if path.name.endswith(".de.safetensors"):
            de_plugin.load(path, into=model)
        else:
            model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError, DEError) as error:
        told = str(error).splitlines()[0]
        raise SystemExit(
            f"--networks {path}: cannot be read into {options.cfg} ({told}); give networks that yolo.py kept "
            "in its --work with the same --cfg, or its file"
        ) from error
    return model


def row(path: Path, photos: Photos, seen: list[list[Detection]], ours: list[list[Detection]]) -> Row:
    """Compare what a network finds with what the original does."""
    sure, all_ = (retention(seen, ours, confidence=x) for x in (0.8, 0.5))
    lost = [
        {
            "image": photos.names[one.image],
            "label": one.wanted.label,
            "original": one.wanted.score,
            "score": one.score,
        }
        for one in missed(seen, ours, confidence=0.8)
    ]
    return {
        "network": path.name,
        "digest": digest(path),
        "found_08": sure.found,
        "objects": sure.objects,
        "found_05": all_.found,
        "detections": all_.detections,
        "extra_detections": all_.extra,
        "missed": lost,
    }


def told(one: Row, names: list[str]) -> str:
    """Return a row as text, a line an object that is missed."""
    sure = f"{one['found_08']} of {one['objects']} above .8"
    all_ = f"{one['found_05']} of {one['detections']} above .5"
    extra = f"{one['extra_detections']} extra beside {one['detections']}"
    lines = [f"{one['network']}: {sure}, {all_}, {extra}"]
    for x in one["missed"]:
        kind = names[x["label"]] if x["label"] < len(names) else f"class {x['label']}"
        lines.append(f"  {x['image']}: {kind} {x['original']:.2f} -> {x['score']:.2f}")
    return "\n".join(lines)


def main() -> None:
    """Compare every network with the original and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="the original's")
    parser.add_argument("--images", type=Path, required=True, help="a folder")
    parser.add_argument("--networks", type=Path, nargs="+", required=True)
    parser.add_argument("--names", type=Path, help="names of the classes, a line each")
    parser.add_argument("--json", type=Path, required=True, help="read where it exists, and written")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = [] if options.names is None else options.names.read_text().splitlines()
    settings = {
        "cfg": digest(options.cfg),
        "weights": digest(options.weights),
        "images": together(photo_files(options.images)),
        "device": options.device,
    }
    document = opened(
        options.json, {"versions": versions(), "settings": settings, "rows": []}, ("versions", "settings")
    )
    original = darknet(options.cfg, options.weights).to(options.device)
    photos = read_photos(photo_files(options.images), original.size)
    seen = found(original, photos, options.device)
    for path in options.networks:
        one = row(path, photos, seen, found(network(options, path), photos, options.device))
        document["rows"] = [x for x in document["rows"] if x["network"] != path.name] + [one]
        print(told(one, names), flush=True)
        write(options.json, document)


if __name__ == "__main__":
    main()
