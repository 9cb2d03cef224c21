"""Between a block of a file and pixels in memory: predictors, interleaving, windows and rims, each in one pass.

A block is what a codec gives or takes: rows × columns × samples, one sample after the other. Pixels are (band, y, x).
All kernels but the last see unsigned words of the pixel's width: differences wrap around, whatever the words stand for.
"""

import numpy as np

from eorouter_kernels._jit import allocating_kernel, kernel

Window = tuple[int, int, int, int]
Corner = tuple[int, int]

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""The unsigned integer type of a pixel of so many bytes."""


@kernel
def take(block: np.ndarray, samples: np.ndarray, window: Window, out: np.ndarray, corner: Corner) -> None:
    """Copy a window of a block to `out`.

    Shapes: block (row, column, sample); samples: the sample of each band of out; window: top, left, rows, columns in
        the block; out (band, y, x), the type of block; corner: row, column in out.
    Units, nodata: untouched.
    """
    top, left, rows, cols = window
    for b in range(samples.size):
        for r in range(rows):
            source = block[top + r, left : left + cols, samples[b]]
            target = out[b, corner[0] + r, corner[1] : corner[1] + cols]
            for c in range(cols):
                target[c] = source[c]


@kernel
def take_sums(block: np.ndarray, samples: np.ndarray, window: Window, out: np.ndarray, corner: Corner) -> None:
    """`take` from a block whose samples are differences to the sample before in the row.

    Shapes: as in `take`; unsigned words.
    Reference: TIFF 6.0 section 14, horizontal differencing (predictor 2), of words of any width.
    """
    top, left, rows, cols = window
    for b in range(samples.size):
        for r in range(rows):
            before = block[top + r, :left, samples[b]]
            source = block[top + r, left : left + cols, samples[b]]
            target = out[b, corner[0] + r, corner[1] : corner[1] + cols]
            word = np.uint64(0)
            for c in range(left):
                word += np.uint64(before[c])
            for c in range(cols):
                word += np.uint64(source[c])
                target[c] = word


@allocating_kernel
def take_planes(block: np.ndarray, samples: np.ndarray, window: Window, out: np.ndarray, corner: Corner) -> None:
    """`take` from a block of floats stored byte plane by byte plane, as differences.

    Shapes: block (row, byte, column, sample) uint8, most significant byte first; out (band, y, x) words of as many
        bytes; the rest as in `take`.
    Reference: Adobe, TIFF technical note 3, floating point predictor (predictor 3).
    """
    top, left, rows, cols = window
    size, width, count = block.shape[1], block.shape[2], block.shape[3]
    carry = np.empty(count, np.uint64)
    for r in range(rows):
        source = block[top + r]
        if size == 4 and count == 1 and samples.size == 1:
            _take_line_of_floats(source, left, out[0, corner[0] + r, corner[1] : corner[1] + cols])
            continue
        carry[:] = 0
        for b in range(samples.size):
            target = out[b, corner[0] + r, corner[1] : corner[1] + cols]
            for c in range(cols):
                target[c] = 0
        for k in range(size):
            shift = np.uint64(8 * (size - 1 - k))
            for b in range(samples.size):
                plane = source[k, :, samples[b]]
                target = out[b, corner[0] + r, corner[1] : corner[1] + cols]
                word = carry[samples[b]]
                for c in range(left):
                    word += np.uint64(plane[c])
                cut = plane[left : left + cols]
                for c in range(cols):
                    word += np.uint64(cut[c])
                    target[c] |= (word & np.uint64(255)) << shift
            for sample in range(count):
                plane = source[k, :, sample]
                for c in range(width):
                    carry[sample] += np.uint64(plane[c])


@kernel
def _take_line_of_floats(planes: np.ndarray, left: int, target: np.ndarray) -> None:
    """One row of one band of four bytes: the four running sums advance side by side."""
    p, q, u, v = planes[0, :, 0], planes[1, :, 0], planes[2, :, 0], planes[3, :, 0]
    a, b, c, d = np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
    for i in range(p.size):
        b += p[i]
        c += q[i]
        d += u[i]
    c += b
    d += c
    for i in range(left):
        a += p[i]
        b += q[i]
        c += u[i]
        d += v[i]
    p, q, u, v = p[left:], q[left:], u[left:], v[left:]
    for i in range(target.size):
        a += p[i]
        b += q[i]
        c += u[i]
        d += v[i]
        high = ((a & np.uint32(255)) << np.uint32(24)) | ((b & np.uint32(255)) << np.uint32(16))
        target[i] = high | ((c & np.uint32(255)) << np.uint32(8)) | (d & np.uint32(255))


@kernel
def put(pixels: np.ndarray, row: int, col: int, block: np.ndarray) -> None:
    """Fill a block with the pixels from (`row`, `col`) on; beyond the last row and column the last one is repeated.

    Shapes: pixels (band, y, x); block (row, column, band), the type of pixels.
    The repeated rim compresses to nothing, and does not disturb what a lossy codec makes of its neighbours.
    """
    bands, height, width = pixels.shape
    rows, cols = min(block.shape[0], height - row), min(block.shape[1], width - col)
    for b in range(bands):
        for r in range(block.shape[0]):
            source, target = pixels[b, row + min(r, rows - 1), col : col + cols], block[r, :, b]
            for c in range(cols):
                target[c] = source[c]
            for c in range(cols, block.shape[1]):
                target[c] = source[cols - 1]


@kernel
def put_differences(pixels: np.ndarray, row: int, col: int, block: np.ndarray) -> None:
    """`put`, of each sample its difference to the sample before in the row.

    Shapes: as in `put`; unsigned words.
    Reference: TIFF 6.0 section 14, horizontal differencing (predictor 2).
    """
    bands, height, width = pixels.shape
    rows, cols = min(block.shape[0], height - row), min(block.shape[1], width - col)
    for b in range(bands):
        for r in range(block.shape[0]):
            source, target = pixels[b, row + min(r, rows - 1), col : col + cols], block[r, :, b]
            after, changes = source[1:], target[1:]
            target[0] = source[0]
            for c in range(cols - 1):
                changes[c] = after[c] - source[c]
            for c in range(cols, block.shape[1]):
                target[c] = 0


@allocating_kernel
def put_planes(pixels: np.ndarray, row: int, col: int, block: np.ndarray) -> None:
    """`put` of floats, byte plane by byte plane, as differences.

    Shapes: pixels (band, y, x) words; block (row, byte, column, band) uint8, most significant byte first.
    Reference: Adobe, TIFF technical note 3, floating point predictor (predictor 3).
    """
    bands, height, width = pixels.shape
    size, side = block.shape[1], block.shape[2]
    rows, cols = min(block.shape[0], height - row), min(side, width - col)
    line = np.empty(cols, np.uint8)
    for r in range(block.shape[0]):
        for b in range(bands):
            source, last = pixels[b, row + min(r, rows - 1), col : col + cols], np.uint8(0)
            for k in range(size):
                shift = 8 * (size - 1 - k)
                target = block[r, k, :, b]
                for c in range(cols):
                    line[c] = source[c] >> shift
                after, changes = line[1:], target[1:]
                target[0] = line[0] - last
                for c in range(cols - 1):
                    changes[c] = after[c] - line[c]
                for c in range(cols, side):
                    target[c] = 0
                last = line[cols - 1]


@kernel
def first_missing(pixels: np.ndarray, nodata: float) -> int:
    """The first row, counted over all bands, that holds a pixel equal to `nodata` or NaN; -1 when there is none.

    Shapes: pixels (band, y, x) of the raster's type; nodata: a number of that type, NaN when only NaN counts.
    """
    bands, height, width = pixels.shape
    for b in range(bands):
        for r in range(height):
            line, found = pixels[b, r], 0
            for c in range(width):
                found += (line[c] == nodata) | (line[c] != line[c])
            if found:
                return b * height + r
    return -1


@kernel
def occupied(lines: np.ndarray) -> int:
    """How many words of a block lie between the first and the last one of their line that is not zero.

    Shapes: lines (row, line, word) uint64. The first word of a line begins the differences of the others and does not
        count; nor do rows at the end that repeat the one before.
    What a predictor makes of a rim, or of an area without data that reaches it, is left out; so are whole empty lines.
    """
    rows, parts, count = lines.shape
    is_rim = True
    while rows > 1 and is_rim:
        for k in range(parts):
            for i in range(count):
                if lines[rows - 1, k, i] != lines[rows - 2, k, i]:
                    is_rim = False
                    break
            if not is_rim:
                break
        rows -= is_rim
    total = 0
    for r in range(rows):
        for k in range(parts):
            line = lines[r, k]
            last = count - 1
            while last > 0 and line[last] == 0:
                last -= 1
            first = 1
            while first < last and line[first] == 0:
                first += 1
            if last > 0:
                total += last - first + 1
    return total


@kernel
def settle(pixels: np.ndarray, valid: np.ndarray, nodata: float, out: np.ndarray, out_valid: np.ndarray) -> None:
    """Fill what is missing with `nodata`, and say where that is.

    Shapes: pixels, out (band, y, x) of the raster's type; valid (band or 1, y, x), or of size 0 where every pixel is
        known; out_valid (band, y, x); nodata: a number of the raster's type.
    Nodata: missing is what is not valid, NaN, or equal to `nodata`.
    """
    bands, height, width = pixels.shape
    for b in range(bands):
        for r in range(height):
            line, target, known = pixels[b, r], out[b, r], out_valid[b, r]
            if valid.size > 0:
                given = valid[min(b, valid.shape[0] - 1), r]
                for c in range(width):
                    is_data = given[c] & (line[c] == line[c]) & (line[c] != nodata)
                    known[c] = is_data
                    target[c] = line[c] if is_data else nodata
            else:
                for c in range(width):
                    is_data = (line[c] == line[c]) & (line[c] != nodata)
                    known[c] = is_data
                    target[c] = line[c] if is_data else nodata


def warm_up() -> None:
    """Compile for pixels of one, two, four and eight bytes, or load from the cache."""
    samples = np.zeros(1, np.int64)
    for word in (np.uint8, np.uint16, np.uint32):
        pixels, block = np.ones((1, 2, 2), word), np.ones((2, 2, 1), word)
        for kernel_of_words in (take, take_sums):
            kernel_of_words(block, samples, (0, 0, 2, 2), pixels, (0, 0))
        for kernel_of_words in (put, put_differences):
            kernel_of_words(pixels, 0, 0, block)
    pixels, planes = np.ones((1, 2, 2), np.uint32), np.ones((2, 4, 2, 1), np.uint8)
    take_planes(planes, samples, (0, 0, 2, 2), pixels, (0, 0))
    put_planes(pixels, 0, 0, planes)
    for name in ("uint8", "uint16", "int16", "float32"):
        pixels, nodata = np.ones((1, 2, 2), name), np.dtype(name).type(0)
        first_missing(pixels, nodata)
        settle(pixels, np.ones((1, 2, 2), np.bool_), nodata, np.empty_like(pixels), np.empty((1, 2, 2), np.bool_))
    occupied(np.zeros((2, 1, 2), np.uint64))
