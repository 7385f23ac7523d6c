//! Where the windows of a convolution lie, and how to lay an image out so that a kernel meets no edge and no stride.
//!
//! An image is copied into *lines*: padded with zeros, and columns (and rows) sorted by their residue of the stride. Then the pixels
//! that one tap of the window meets lie side by side. The gradient of the input is the same walk over the output's gradient, once for
//! each residue of the stride, with the taps that reach it: no zeros are put in between.

use super::bridge::Attributes;

/// One axis of a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    pub kernel: usize,
    pub stride: usize,
    pub before: usize,
    pub after: usize,
    pub dilation: usize,
}

/// Windows over rows and columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window(pub [Axis; 2]);

impl Window {
    /// From `strides`, `pads` and `dilations`; the kernel's size is for later.
    pub(super) fn of(attributes: &Attributes<'_>) -> Result<Self, String> {
        let strides = attributes.ints(c"strides", 1, Some([1; 2]))?;
        let pads = attributes.ints(c"pads", 0, Some([0; 4]))?;
        let dilations = attributes.ints(c"dilations", 1, Some([1; 2]))?;
        Ok(Self([0, 1].map(|i| Axis {
            kernel: 1,
            stride: strides[i],
            before: pads[i],
            after: pads[i + 2],
            dilation: dilations[i],
        })))
    }

    /// The same for a kernel of this size.
    pub(super) fn with_kernel(mut self, kernel: [usize; 2]) -> Self {
        self.0[0].kernel = kernel[0];
        self.0[1].kernel = kernel[1];
        self
    }

    pub(super) fn kernel_size(&self) -> usize {
        self.0[0].kernel * self.0[1].kernel
    }

    /// True where every output meets the one pixel of its own place.
    pub(super) fn keeps_pixels(&self) -> bool {
        self.0.iter().all(|a| [a.kernel, a.stride, a.before, a.after] == [1, 1, 0, 0])
    }

    /// Rows and columns of what comes out. Errors where a window is larger than the padded image.
    pub(super) fn output(&self, size: [usize; 2]) -> Result<[usize; 2], String> {
        Ok([self.0[0].output(size[0])?, self.0[1].output(size[1])?])
    }

    /// Errors where an image of `size` does not give an output of `given`.
    pub(super) fn check(&self, size: [usize; 2], given: [usize; 2]) -> Result<(), String> {
        let expected = self.output(size)?;
        if expected == given {
            return Ok(());
        }
        Err(format!("images of {size:?} give outputs of {expected:?}, the gradient has {given:?}"))
    }
}

impl Axis {
    /// First to last tap.
    fn reach(&self) -> usize {
        (self.kernel - 1) * self.dilation
    }

    fn output(&self, size: usize) -> Result<usize, String> {
        let padded = size + self.before + self.after;
        let room = if self.kernel == 0 { None } else { padded.checked_sub(self.reach() + 1) };
        room.map(|room| room / self.stride + 1).ok_or_else(|| {
            let Self { kernel, dilation, .. } = self;
            format!("a kernel of {kernel} with dilation {dilation} does not fit into {padded} padded pixels")
        })
    }

    /// Outputs from the first to past the last that `tap` gives a pixel within an image of `size`.
    pub(super) fn inside(&self, tap: usize, size: usize, output: usize) -> (usize, usize) {
        let shift = tap * self.dilation;
        let low = self.before.saturating_sub(shift).div_ceil(self.stride);
        let high = (size + self.before).saturating_sub(shift).div_ceil(self.stride).min(output);
        (low.min(high), high)
    }

    /// The pixel that `tap` meets at `output`, which must be one of [`Axis::inside`].
    pub(super) fn pixel(&self, tap: usize, output: usize) -> usize {
        output * self.stride + tap * self.dilation - self.before
    }
}

/// Lines of one axis, and walks over them.
struct Walks {
    /// For each line its pixel, none for zeros.
    lines: Vec<Option<usize>>,
    walks: Vec<Walk>,
}

/// Outputs `first`, `first + step` … of one axis; output `j` meets, with each tap, the line at the tap's offset + `j`.
struct Walk {
    first: usize,
    step: usize,
    count: usize,
    /// Taps and offsets.
    taps: Vec<(usize, usize)>,
}

impl Walks {
    fn forward(axis: &Axis, size: usize, output: usize) -> Self {
        let mut residues: Vec<usize> = (0..axis.kernel).map(|k| k * axis.dilation % axis.stride).collect();
        residues.sort_unstable();
        residues.dedup();
        let each = output + axis.reach() / axis.stride;
        let line =
            |residue: usize, j: usize| (j * axis.stride + residue).checked_sub(axis.before).filter(|&p| p < size);
        let lines = residues.iter().flat_map(|&r| (0..each).map(move |j| line(r, j))).collect();
        let offset = |k: usize| {
            let shift = k * axis.dilation;
            let at = residues.iter().position(|&r| r == shift % axis.stride).unwrap_or(0);
            at * each + shift / axis.stride
        };
        let taps = (0..axis.kernel).map(|k| (k, offset(k))).collect();
        Self { lines, walks: vec![Walk { first: 0, step: 1, count: output, taps }] }
    }

    /// Over an output's gradient of `output`, to the gradient of an image of `size`.
    fn backward(axis: &Axis, size: usize, output: usize) -> Self {
        let signed = |v: usize| i64::try_from(v).unwrap_or(i64::MAX);
        let walks: Vec<(usize, usize, Vec<(usize, i64)>)> = (0..axis.stride.min(size))
            .map(|first| {
                let shift = |k: usize| signed(first + axis.before) - signed(k * axis.dilation);
                let reaching = (0..axis.kernel).filter(|&k| shift(k).rem_euclid(signed(axis.stride)) == 0);
                let taps = reaching.map(|k| (k, shift(k).div_euclid(signed(axis.stride)))).collect();
                (first, (size - first).div_ceil(axis.stride), taps)
            })
            .collect();
        let offsets =
            || walks.iter().flat_map(|(_, count, taps)| taps.iter().map(move |t| (t.1, t.1 + signed(*count))));
        let low = offsets().map(|o| o.0).min().unwrap_or(0).min(0);
        let high = offsets().map(|o| o.1).max().unwrap_or(0).max(signed(output));
        let unsigned = |v: i64| usize::try_from(v).unwrap_or(0);
        let lines = (low..high).map(|l| usize::try_from(l).ok().filter(|&p| p < output)).collect();
        let walk = |(first, count, taps): (usize, usize, Vec<(usize, i64)>)| Walk {
            first,
            step: axis.stride,
            count,
            taps: taps.into_iter().map(|(k, o)| (k, unsigned(o - low))).collect(),
        };
        Self { lines, walks: walks.into_iter().map(walk).collect() }
    }

    /// Lines before and after those that are all `size` pixels side by side, if they are.
    fn around(&self, size: usize) -> Option<(usize, usize)> {
        let before = self.lines.iter().position(Option::is_some)?;
        let (pixels, after) = self.lines.get(before..)?.split_at_checked(size)?;
        let all = pixels.iter().enumerate().all(|(i, l)| *l == Some(i)) && after.iter().all(Option::is_none);
        all.then_some((before, after.len()))
    }

    fn as_they_are(&self, size: usize) -> bool {
        self.around(size) == Some((0, 0))
    }
}

/// A tap of the window: where in the lines it begins, and which of the kernel's it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tap {
    pub offset: usize,
    pub kernel: usize,
}

/// A walk over both axes: outputs of a grid, and the taps that reach them.
pub(super) struct Part {
    pub taps: Vec<Tap>,
    /// Rows and columns of outputs.
    pub count: [usize; 2],
    /// The place of the first in the output's plane, and the steps to the next row and column.
    pub first: usize,
    pub step: [usize; 2],
}

/// How to lay out a plane of an image, and how to walk over it.
pub(super) struct Plan {
    rows: Vec<Option<usize>>,
    columns: Vec<Option<usize>>,
    /// Where the columns are all of a row, side by side: zeros before and after it.
    around: Option<(usize, usize)>,
    /// The plane is used as it is.
    pub direct: bool,
    /// Pixels of a laid-out plane, and of one line of it.
    pub plane: usize,
    pub pitch: usize,
    pub parts: Vec<Part>,
}

impl Plan {
    /// From images of `size` to outputs of `output`.
    pub(super) fn forward(window: &Window, size: [usize; 2], output: [usize; 2]) -> Self {
        let [rows, columns] = [0, 1].map(|i| Walks::forward(&window.0[i], size[i], output[i]));
        Self::of(rows, columns, window.0[1].kernel, size, output[1])
    }

    /// From gradients of `output` to gradients of images of `size`.
    pub(super) fn backward(window: &Window, size: [usize; 2], output: [usize; 2]) -> Self {
        let [rows, columns] = [0, 1].map(|i| Walks::backward(&window.0[i], size[i], output[i]));
        Self::of(rows, columns, window.0[1].kernel, output, size[1])
    }

    /// `from` is the size of the planes laid out, `width` the width of the planes written.
    fn of(rows: Walks, columns: Walks, kernel_width: usize, from: [usize; 2], width: usize) -> Self {
        let direct = rows.as_they_are(from[0]) && columns.as_they_are(from[1]);
        let pitch = columns.lines.len();
        let mut parts = Vec::new();
        for r in &rows.walks {
            for c in &columns.walks {
                let pairs = r.taps.iter().flat_map(|rt| c.taps.iter().map(move |ct| (rt, ct)));
                let tap = |(rt, ct): (&(usize, usize), &(usize, usize))| Tap {
                    offset: rt.1 * pitch + ct.1,
                    kernel: rt.0 * kernel_width + ct.0,
                };
                parts.push(Part {
                    taps: pairs.map(tap).collect(),
                    count: [r.count, c.count],
                    first: r.first * width + c.first,
                    step: [r.step * width, c.step],
                });
            }
        }
        // Rows that follow each other without a gap are one.
        if let [part] = parts.as_mut_slice()
            && direct
            && matches!(part.taps[..], [Tap { offset: 0, .. }])
            && part.count == from
            && part.step == [width, 1]
        {
            part.count = [1, from[0] * from[1]];
        }
        let around = columns.around(from[1]);
        Self { direct, plane: rows.lines.len() * pitch, pitch, parts, around, rows: rows.lines, columns: columns.lines }
    }

    /// Appends a plane of `width`, laid out.
    pub(super) fn lay<T: Copy + Default>(&self, plane: &[T], width: usize, out: &mut Vec<T>) {
        for row in &self.rows {
            match (row.and_then(|r| plane.get(r * width..(r + 1) * width)), self.around) {
                (None, _) => out.extend(std::iter::repeat_n(T::default(), self.pitch)),
                (Some(row), Some((before, after))) => {
                    out.extend(std::iter::repeat_n(T::default(), before));
                    out.extend_from_slice(row);
                    out.extend(std::iter::repeat_n(T::default(), after));
                }
                (Some(row), None) => {
                    out.extend(self.columns.iter().map(|c| c.and_then(|c| row.get(c)).copied().unwrap_or_default()));
                }
            }
        }
    }
}
