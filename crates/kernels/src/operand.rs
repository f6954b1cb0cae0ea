//! What a convolution reads and what becomes of its sums. BatchNorm and ReLU in front of it are not stored: they are
//! applied while an operand is copied into the convolution's scratch memory, forward and backward. Bias, residual and
//! ReLU behind it are applied while its output is stored.

use crate::gemm::STRIP;
use crate::simd::{Element, Simd};

/// `relu?(scale * u + shift)` per channel: BatchNorm with its statistics folded in.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a, E: Element> {
    /// gamma / sigma, (channels,).
    pub scale: &'a [E::Wide],
    /// beta - gamma mu / sigma, (channels,).
    pub shift: &'a [E::Wide],
    /// Whether a ReLU follows.
    pub relu: bool,
}

/// A convolution's input: a stored activation, with BatchNorm (and ReLU) still to apply or not.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a, E: Element> {
    /// Stored activation, NHWC.
    pub u: &'a [E],
    /// What is still to apply.
    pub affine: Option<Affine<'a, E>>,
}

/// A gradient: stored, or the gradient with respect to `u` of a BatchNorm (and ReLU) of `u`, still to be formed.
#[derive(Clone, Copy, Debug)]
pub struct Gradient<'a, E: Element> {
    /// Stored gradient, NHWC: of the value itself, or of the BatchNorm's output.
    pub g: &'a [E],
    /// How to form the gradient from it.
    pub norm: Option<NormGradient<'a, E>>,
    /// The output of a ReLU, NHWC: where it is not positive, the gradient of the ReLU's input is 0.
    pub relu: Option<&'a [E]>,
}

impl<'a, E: Element> Gradient<'a, E> {
    /// A gradient that is stored as it is.
    pub fn stored(g: &'a [E]) -> Self {
        Gradient { g, norm: None, relu: None }
    }
}

/// What becomes of a convolution's sums `y` before they are stored: `relu?(affine(y + bias) + residual)`.
#[derive(Clone, Copy, Debug)]
pub struct After<'a, E: Element> {
    /// Added to every pixel, (c_out,).
    pub bias: Option<&'a [E::Wide]>,
    /// A BatchNorm (and ReLU) whose statistics are known.
    pub affine: Option<Affine<'a, E>>,
    /// Added to the output, NHWC, whole batch.
    pub residual: Option<&'a [E]>,
    /// Whether a ReLU follows.
    pub relu: bool,
    /// The pixels that the output is a part of, if it is.
    pub within: Option<Within>,
}

/// A convolution's channels in wider pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Within {
    /// Channels of the pixels.
    pub channels: usize,
    /// Which of them is the convolution's first.
    pub first: usize,
}

impl<E: Element> Default for After<'_, E> {
    /// Nothing.
    fn default() -> Self {
        After { bias: None, affine: None, residual: None, relu: false, within: None }
    }
}

/// BatchNorm's backward pass: `slope * g' + spread * u + offset`, with g' = g where the ReLU was open.
#[derive(Clone, Copy, Debug)]
pub struct NormGradient<'a, E: Element> {
    /// The BatchNorm's input, NHWC.
    pub u: &'a [E],
    /// Its forward map, which decides where the ReLU was open.
    pub affine: Affine<'a, E>,
    /// gamma / sigma, (channels,).
    pub slope: &'a [E::Wide],
    /// -gamma / sigma^2 * mean(g' xhat), zero in eval mode.
    pub spread: &'a [E::Wide],
    /// What does not depend on the position, zero in eval mode.
    pub offset: &'a [E::Wide],
}

/// Per-channel vectors copied to a whole number of strips, zero behind the last channel.
#[derive(Default)]
pub struct Coefficients<E> {
    data: Vec<E>,
    width: usize,
}

impl<E: Element> Coefficients<E> {
    /// Lays the vectors side by side.
    pub fn fill(&mut self, vectors: &[&[E]], channels: usize) {
        self.width = channels.div_ceil(STRIP) * STRIP;
        self.data.clear();
        for v in vectors {
            self.data.extend_from_slice(v);
            self.data.resize(self.data.len() + self.width - channels, E::default());
        }
    }
    #[inline(always)]
    fn row(&self, i: usize) -> *const E {
        self.data[i * self.width..].as_ptr()
    }
}

/// One image's pixels of `channels` channels, read vector by vector; the last vector of a pixel is
/// filled up with zeros, never read past the slice.
///
/// # Safety
/// `p` points to a pixel with `channels` elements and `c < channels`.
#[inline(always)]
pub unsafe fn load_channels<S: Simd>(p: *const S::E, c: usize, channels: usize) -> S::V {
    // SAFETY: a whole vector lies within the pixel, or its elements are copied one by one.
    unsafe {
        if c + S::LANES <= channels {
            return S::load(p.add(c));
        }
        let mut tail = [S::E::default(); STRIP];
        for (i, x) in tail.iter_mut().enumerate().take(channels - c) {
            *x = *p.add(c + i);
        }
        S::load(tail.as_ptr())
    }
}

/// The counterpart of [`load_channels`]: stores only the pixel's own channels.
///
/// # Safety
/// `p` points to a pixel with `channels` elements and `c < channels`.
#[inline(always)]
pub unsafe fn store_channels<S: Simd>(p: *mut S::E, c: usize, channels: usize, v: S::V) {
    // SAFETY: as above.
    unsafe {
        if c + S::LANES <= channels {
            return S::store(p.add(c), v);
        }
        let mut tail = [S::E::default(); STRIP];
        S::store(tail.as_mut_ptr(), v);
        for (i, x) in tail.iter().enumerate().take(channels - c) {
            *p.add(c + i) = *x;
        }
    }
}

/// Reads vectors of an [`Input`]; made once a task.
pub struct InputReader<'a, E: Element> {
    input: Input<'a, E>,
    channels: usize,
    coefficients: Coefficients<E::Wide>,
}

impl<'a, E: Element> InputReader<'a, E> {
    /// A reader of pixels with `channels` channels.
    pub fn new(input: Input<'a, E>, channels: usize) -> Self {
        let mut coefficients = Coefficients { data: Vec::new(), width: 0 };
        if let Some(a) = input.affine {
            assert!(
                a.scale.len() == channels && a.shift.len() == channels,
                "coefficients of other than {channels} channels"
            );
            coefficients.fill(&[a.scale, a.shift], channels);
        }
        InputReader { input, channels, coefficients }
    }

    /// The activation, if it is read as it is stored.
    pub fn plain(&self) -> Option<&'a [E]> {
        self.input.affine.is_none().then_some(self.input.u)
    }

    /// Channels `c..` of the pixel that starts at element `at`.
    ///
    /// # Safety
    /// `at + channels` is within the activation, `c < channels`.
    #[inline(always)]
    pub unsafe fn load<S: Simd<E = E>>(&self, at: usize, c: usize) -> S::V {
        // SAFETY: the caller's contract; coefficients are padded to whole strips.
        unsafe {
            let x = load_channels::<S>(self.input.u.as_ptr().add(at), c, self.channels);
            let Some(affine) = self.input.affine else { return x };
            let scale = S::W::load(self.coefficients.row(0).add(c));
            let y = S::fma(x, scale, S::W::load(self.coefficients.row(1).add(c)));
            if affine.relu { S::relu(y) } else { y }
        }
    }
}

/// Reads vectors of a [`Gradient`]; made once a task.
pub struct GradientReader<'a, E: Element> {
    gradient: Gradient<'a, E>,
    channels: usize,
    coefficients: Coefficients<E::Wide>,
}

impl<'a, E: Element> GradientReader<'a, E> {
    /// A reader of pixels with `channels` channels.
    pub fn new(gradient: Gradient<'a, E>, channels: usize) -> Self {
        let mut coefficients = Coefficients { data: Vec::new(), width: 0 };
        if let Some(n) = gradient.norm {
            let vectors = [n.affine.scale, n.affine.shift, n.slope, n.spread, n.offset];
            let fits = vectors.iter().all(|v| v.len() == channels) && n.u.len() == gradient.g.len();
            assert!(fits, "coefficients of other than {channels} channels, or another activation's");
            coefficients.fill(&vectors, channels);
        }
        assert!(
            gradient.relu.is_none_or(|y| y.len() == gradient.g.len()),
            "the ReLU's output is as long as its gradient"
        );
        GradientReader { gradient, channels, coefficients }
    }

    /// Channels `c..` of the pixel that starts at element `at`.
    ///
    /// # Safety
    /// `at + channels` is within the gradient, `c < channels`.
    #[inline(always)]
    pub unsafe fn load<S: Simd<E = E>>(&self, at: usize, c: usize) -> S::V {
        // SAFETY: the caller's contract; coefficients are padded to whole strips.
        unsafe {
            let g = load_channels::<S>(self.gradient.g.as_ptr().add(at), c, self.channels);
            let g = match self.gradient.norm {
                None => g,
                Some(n) => {
                    let u = load_channels::<S>(n.u.as_ptr().add(at), c, self.channels);
                    let k = |i: usize| S::W::load(self.coefficients.row(i).add(c));
                    let g = if n.affine.relu { S::gate(g, S::fma(u, k(0), k(1))) } else { g };
                    S::fma(g, k(2), S::fma(u, k(3), k(4)))
                }
            };
            match self.gradient.relu {
                None => g,
                Some(y) => S::gate(g, load_channels::<S>(y.as_ptr().add(at), c, self.channels)),
            }
        }
    }
}

/// Finishes and stores vectors of a convolution's output; made once a task.
pub struct OutputWriter<'a, E: Element> {
    after: After<'a, E>,
    channels: usize,
    within: Within,
    /// The task's first pixel in the batch.
    start: usize,
    /// Bias, scale, shift, each if there is one.
    coefficients: Coefficients<E::Wide>,
}

impl<'a, E: Element> OutputWriter<'a, E> {
    /// A writer of pixels with `channels` channels, the first of which is pixel `start` of the batch.
    pub fn new(after: After<'a, E>, channels: usize, start: usize) -> Self {
        let mut coefficients = Coefficients { data: Vec::new(), width: 0 };
        let affine = after.affine.map(|a| [a.scale, a.shift]);
        let vectors: Vec<_> = after.bias.into_iter().chain(affine.into_iter().flatten()).collect();
        coefficients.fill(&vectors, channels);
        let within = after.within.unwrap_or(Within { channels, first: 0 });
        OutputWriter { after, channels, within, start, coefficients }
    }

    /// Stores what becomes of the sums `v` of channels `c..` of a pixel; `out` and the pixel are the task's own.
    ///
    /// # Safety
    /// The pixel is one of `out`'s and one of the batch's, `c < channels`.
    #[inline(always)]
    pub unsafe fn store<S: Simd<E = E>>(&self, out: *mut E, pixel: usize, c: usize, mut v: S::V) {
        // SAFETY: the caller's contract; coefficients are padded to whole strips.
        unsafe {
            let biased = self.after.bias.is_some();
            if biased {
                v = S::add(v, S::W::load(self.coefficients.row(0).add(c)));
            }
            if let Some(affine) = self.after.affine {
                let k = |i: usize| S::W::load(self.coefficients.row(usize::from(biased) + i).add(c));
                v = S::fma(v, k(0), k(1));
                if affine.relu {
                    v = S::relu(v);
                }
            }
            if let Some(r) = self.after.residual {
                let at = (self.start + pixel) * self.channels;
                v = S::add(v, load_channels::<S>(r.as_ptr().add(at), c, self.channels));
            }
            if self.after.relu {
                v = S::relu(v);
            }
            let to = out.add(pixel * self.within.channels + self.within.first);
            store_channels::<S>(to, c, self.channels, v);
        }
    }
}
