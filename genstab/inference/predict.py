"""Apply a generator to a folder of images."""

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from genstab.data.augment import Size
from genstab.data.decoders import GDAL_NODATA
from genstab.data.geotiff import scaled_geotiff
from genstab.data.header_notes import HeaderNotes
from genstab.data.image_io import (
    ImageInfo,
    image_info,
    missing_pixels,
    read_image,
    type_of_format,
    writable,
    write_image,
)
from genstab.data.paths import find_images, hxw, shortened
from genstab.data.reading import INTERPOLATIONS, Range, Reading, almost_constant, parse_range, resized
from genstab.errors import ON_ERROR, InputError, check_choice, check_counts
from genstab.inference.conventions import reason_of
from genstab.inference.eval_mode import inference
from genstab.inference.input_size import fits, padded_calls
from genstab.inference.predict_record import RECORD, Stamp, model_digest, read_record, recording, stamp
from genstab.inference.value_range import SettledCall, Values
from genstab.runtime.files import remove_parts

LOOKED_AT = 16  # batches of which nothing is written while they do not tell what the values mean


@dataclass
class Predicted:
    """Relative names of the images that were written, existed already, or failed, with the reason."""

    written: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def summary(self, output: str | Path) -> str:
        """Return a summary in one line."""
        count = len(self.written)
        counted = f"{count} image{'s' * (count != 1)} written to {output}, {len(self.present)} already existed"
        return counted + (f", {len(self.failed)} left out" if self.failed else "")

    @contextmanager
    def leave_out(self, name: str, on_error: str) -> Iterator[None]:
        """With `skip`, record an `InputError` as the reason why an image is left out."""
        try:
            yield
        except InputError as error:
            if on_error == "raise":
                raise
            self.failed[name] = str(error)


@dataclass(frozen=True)
class _Job:
    name: str
    source: Path
    target: Path
    shape: tuple[int, int, int]
    stamp: Stamp = field(compare=False)  # a list has no hash
    info: ImageInfo = field(compare=False)
    written: Mapping[str, Any] = field(compare=False)  # type, range, profile and tags, for `write_image`


def predict(
    generator: nn.Module,
    source: str | Path,
    output: str | Path,
    batch_size: int = 4,
    size: Size | None = None,
    recursive: bool = True,
    overwrite: bool = False,
    on_error: str = "raise",
    device: str | torch.device = "cpu",
    values: Sequence[Values] = (Values(),),
    notes: list[str] | None = None,
    source_range: Sequence[float] | None = None,
    target_range: Sequence[float] | None = None,
    source_labels: int | None = None,
    source_interpolation: str | None = None,
    source_channels: int | None = None,
    max_megapixels: float | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> Predicted:
    """Apply a generator to the images in a folder, and write the results under the same names to another folder.

    Images are read with `read_image` and results written with `write_image`, with the depth of the source (8 bits in
    formats without 16); results of formats that it does not write, such as GIF, are PNG. Images with other channels
    than the generator takes raise an error without `source_channels`, as does an output size that is not the input size
    times or divided by an integer. The EXIF orientation is applied; an ICC profile and the tags of a GeoTIFF are kept,
    fitted to the size of the result; other metadata is dropped.

    A record beside the results, `predict.jsonl`, says what made them, so that a second call does what is missing:
    images that are new or have changed since. Nothing is written through links or over images of `source`.

    Args:
        generator: a module on `device`, see `genstab.inference.load_model.place`.
        source: folder of the images.
        output: folder of the results, created if missing; not `source` or, if recursive, a folder in it.
        batch_size: images of the same size in a forward pass.
        size: (height, width) to resize images to; the outputs are resized back.
        recursive: search sub-folders, too.
        overwrite: process images again that exist in `output`, also those of another model, other options or none.
        on_error: `raise` at the first image that fails (before anything is written, if its header shows the problem),
            or `skip` such images.
        device: device of the generator.
        values: what the values of its images mean, see `genstab.inference.value_range.parse_values`; of several the
            one that fits is found by trying.
        notes: gets lines about what was found by trying.
        source_range: the values that become −1 and 1, of images that are not of 8 bits; None: what the generator was
            trained on, as its checkpoint says, or the range of the type.
        target_range: the values that −1 and 1 become in results of the type of such images, for example `int16`; None:
            that of the training, or else `source_range`. A generator trained on targets of 8 bits writes 8 bits, and a
            range of less than 255 is written as `float32` where the format holds it.
        source_labels, source_interpolation: see `genstab.data.reading.Reading`; None: as in the training.
        source_channels: convert images with other channels, see `genstab.data.channels.converted`; None: as they are.
        max_megapixels: the most pixels of an image, in millions; None: 179.
        made_by: options that the generator's outputs depend on, besides `size` and its weights, for the record.

    Raises:
        InputError: a folder or option is invalid; `output` holds results of another model or other options, or images
            that are not in the record; or an image cannot be read, processed or written.
    """
    source, output = Path(source).expanduser(), Path(output).expanduser()
    check_choice("on_error", on_error, ON_ERROR)
    check_counts(batch_size=batch_size)
    found: list[str] = [] if notes is None else notes
    say = partial(warnings.warn, stacklevel=3) if notes is None else notes.append
    paths = find_images(source, recursive, "input", say)
    _check_output(source, output, recursive)
    _check_targets(paths)
    trained = getattr(generator, "trained_on", {})
    sides = {"source": source_range, "target": target_range}
    known = {side: trained.get("value_range", {}).get(side) if each is None else each for side, each in sides.items()}
    reading = Reading(
        parse_range("source_range", known["source"]),
        source_labels or trained.get("source_labels"),
        source_interpolation or trained.get("source_interpolation", INTERPOLATIONS[0]),
        max_megapixels,
        source_channels,
    )
    written_range = parse_range("target_range", known["target"])
    if written_range is None and "value_range" not in trained:
        written_range = reading.value_range
    depends = {"sha256": model_digest(generator), "size": size, **(made_by or {})}
    depends |= {"source_range": reading.value_range, "source_labels": reading.labels, "target_range": written_range}
    if source_channels is not None:
        depends["source_channels"] = source_channels
    kept = json.loads(json.dumps({**depends, "source_interpolation": reading.interpolation}))
    record = read_record(output)
    if not overwrite:
        record.check(output, kept)
        if record.made_by == kept and (as_before := [each for each in values if str(each) == record.values]):
            values = as_before
            found.append(f"value_range=auto: {as_before[0]}, as for the results in {output}")
    result = Predicted()
    jobs: list[_Job] = []
    unknown: list[str] = []
    headers = HeaderNotes(reading)
    for path in paths:
        name = path.relative_to(source).as_posix()
        target = writable(output / name)
        with result.leave_out(name, on_error):
            state = stamp(path)
            if os.path.lexists(target) and not overwrite:
                if name not in record.images:
                    unknown.append(name)
                elif record.images[name] == state and target.is_file():
                    result.present.append(name)
                    continue
            info = image_info(path, reading)
            headers.see(path, info)
            jobs.append(
                _Job(name, path, target, info.shape, state, info, _written(info, target, reading, written_range))
            )
    if unknown:
        raise InputError(
            f"output={output} holds {shortened(unknown)}, which {RECORD} there does not know: overwrite=true replaces "
            f"{'it' if len(unknown) == 1 else 'them'}, output=DIR names another folder"
        )
    _check_links([writable(output / path.relative_to(source)) for path in paths], paths, output)
    if not jobs:
        return result
    for line in headers.lines():
        say(line)
    unfit: list[str] = []
    spans: list[Tensor] = []
    written: list[Tensor] = []
    with (
        recording(output, kept, [job.name for job in jobs], overwrite) as add,
        inference(generator) as native,
        tqdm(total=len(jobs), unit="image", disable=None) as bar,
    ):
        call = SettledCall(padded_calls(generator, native, found), values, found)
        later: list[list[_Job]] = []
        for batch in chain(_batches(jobs, batch_size, size), later):
            images: dict[_Job, Tensor] = {}
            for job in batch:
                with result.leave_out(job.name, on_error):
                    image = read_image(job.source, reading)
                    images[job] = image if size is None else resized(image, size, reading.interpolation)
            outputs = _outputs(images, call, size is None, device, result, on_error) if images else None
            if outputs is not None:
                if not call.told and len(later) < LOOKED_AT and batch not in later:
                    later.append(batch)  # nothing is written before it is known what the values mean
                    continue
                if len(values) > 1 and not call.settled:
                    add({"values": str(call.values)})
                call.settle()
                spans += [torch.stack(image.aminmax()) for image in images.values()]
                for job, image in zip(images, outputs, strict=True):
                    with result.leave_out(job.name, on_error):
                        if not _write(job, image, size is None, reading):
                            unfit.append(job.name)
                        written.append(torch.stack(image.aminmax()).cpu())
                        add({"images": {job.name: job.stamp}})
                        result.written.append(job.name)
            bar.update(len(batch))
    if unfit:
        say(
            f"{shortened(unfit)}: pixels without data hold what the model made of them, as the type of the results "
            "has no value for them"
        )
    for side, seen in (("sources", spans), ("outputs", written)):
        if seen and (empty := almost_constant(seen, side)):
            say(empty)
            break  # outputs of nothing are nothing
    return result


def _check_links(targets: Sequence[Path], sources: Sequence[Path], output: Path) -> None:
    """Raise an `InputError` if a result would leave the output folder by a link, or replace an image of the input."""
    # not Path.resolve, which raises at a loop of links
    inside = Path(os.path.realpath(output))
    real = {folder: Path(os.path.realpath(folder)) for folder in {target.parent for target in targets}}
    for folder, leads_to in real.items():
        if not leads_to.is_relative_to(inside):
            raise InputError(
                f"output={output}: {folder} is or lies in a link to {leads_to}, outside of it: remove the link"
            )
        remove_parts(folder)
    replaced = {real[target.parent] / target.name for target in targets}
    for path in sources:
        if (leads_to := Path(os.path.realpath(path))) in replaced:
            raise InputError(
                f"output={output}: the result {leads_to} would replace the input {path}, which links to it"
            )


def _written(info: ImageInfo, target: Path, reading: Reading, values: Range | None) -> dict[str, Any]:
    """Return how a result is written: in the type of its source, if that has a range of values or is `uint16`."""
    own = info.dtype == "uint8" or (values is None and (reading.value_range or info.dtype != "uint16"))
    wanted = "uint8" if own or reading.labels else info.dtype
    if wanted != "uint8" and values and values[1] - values[0] < 255 and np.dtype(wanted).kind != "f":
        wanted = "float32"  # so few whole numbers would be steps
    dtype = type_of_format(target, wanted)
    tags = info.tags if info.orientation == 1 and target.suffix.lower() in (".tif", ".tiff") else ()
    return {
        "dtype": dtype,
        "value_range": values if dtype == wanted != "uint8" else None,
        "profile": info.profile,
        "tags": tags,
    }


def _check_output(source: Path, output: Path, recursive: bool) -> None:
    inside, folder = output.resolve(), source.resolve()
    if output.exists() and not output.is_dir():
        raise InputError(f"output={output} is a file, not a folder")
    if inside == folder:
        raise InputError(f"output={output} is the input folder: its images would be overwritten")
    if recursive and inside.is_relative_to(folder):
        raise InputError(
            f"output={output} is inside input={source}, so that a second run would read its images; "
            "choose another folder or recursive=false"
        )


def _check_targets(paths: Sequence[Path]) -> None:
    taken: dict[Path, Path] = {}
    for path in paths:
        if (other := taken.setdefault(writable(path), path)) != path:
            raise InputError(f"the results of {other} and {path} would both be a {writable(path).name}: rename one")


def _batches(jobs: Sequence[_Job], batch_size: int, size: Size | None) -> Iterator[list[_Job]]:
    """Group images of the same shape, or of the same number of channels if they are resized."""
    groups: dict[tuple[int, ...], list[_Job]] = {}
    for job in jobs:
        groups.setdefault(job.shape if size is None else job.shape[:1], []).append(job)
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _outputs(
    images: dict[_Job, Tensor],
    call: Callable[[Tensor], Tensor],
    native: bool,
    device: str | torch.device,
    result: Predicted,
    on_error: str,
) -> Tensor | None:
    """Call the generator with a batch; return None if it cannot take it and that is no error."""
    inputs = torch.stack(list(images.values())).to(device)
    shape = f"{inputs.shape[1]} channels of {hxw(inputs.shape[2:])} pixels"
    try:
        outputs = call(inputs)
        if outputs.ndim != 4 or len(outputs) != len(inputs):
            raise InputError(f"the generator returns {tuple(outputs.shape)}, not images (N, C, H, W)")
        if native and not fits(outputs, inputs):
            raise InputError(
                f"the generator returns {hxw(outputs.shape[2:])} pixels: set size=[height,width] to resize before it "
                "and back after it"
            )
    except torch.OutOfMemoryError as error:
        raise InputError(f"out of memory with {len(images)} images of {shape}: lower batch_size") from error
    except (InputError, RuntimeError) as error:
        for job in images:
            with result.leave_out(job.name, on_error):
                raise InputError(f"{job.source}, {shape}: {reason_of(error)}") from error
        return None
    return outputs


def _write(job: _Job, output: Tensor, native: bool, reading: Reading) -> bool:
    """Write an output; pixels without data stay so. Return whether its type has a value for them."""
    if not output.isfinite().all():
        raise InputError(f"{job.source}: the output contains NaN or infinite values")
    image = output if native else resized(output, job.shape[1:])
    ratio = [now / before for now, before in zip(image.shape[1:], job.shape[1:], strict=True)]
    options = {**job.written, "tags": scaled_geotiff(job.written["tags"], ratio)}
    options["extra"] = job.info.extra if len(image) == job.shape[0] else None
    missing, no_data = missing_pixels(job.source, job.info, reading), job.info.no_data
    kind = np.dtype(job.written["dtype"])
    fits_type = kind.kind == "f" or (no_data.is_integer() and np.iinfo(kind).min <= no_data <= np.iinfo(kind).max)
    if missing is not None and missing.any() and fits_type:
        options |= {"missing": resized(missing.float(), image.shape[1:], "nearest") > 0, "no_data": no_data}
    elif not fits_type:
        options["tags"] = [tag for tag in options["tags"] if tag[0] != GDAL_NODATA]
    write_image(job.target, image, **options)
    return fits_type or missing is None or not missing.any().item()
