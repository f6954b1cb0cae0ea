//! What every kernel call needs: the instruction set and reusable memory.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::simd::{Element, Isa};

/// A cache line: vectors that do not straddle two of them are loaded twice as fast.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A slice of elements that starts at a cache line.
#[derive(Debug)]
pub struct Aligned<E> {
    lines: Vec<Line>,
    len: usize,
    of: std::marker::PhantomData<E>,
}

impl<E: Element> Aligned<E> {
    fn new(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<E>()).expect("a buffer of more bytes than there are addresses");
        let lines = vec![Line([0; 64]); bytes.div_ceil(64)];
        Aligned { lines, len, of: std::marker::PhantomData }
    }
}

impl<E: Element> Deref for Aligned<E> {
    type Target = [E];
    fn deref(&self) -> &[E] {
        // SAFETY: the lines hold `len` elements, are aligned for them, and every bit pattern is a float.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<E: Element> DerefMut for Aligned<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Buffers by length. They are taken once a task, not in the loops.
#[derive(Debug)]
struct Pool<E>(Mutex<HashMap<usize, Vec<Aligned<E>>>>);

impl<E: Element> Pool<E> {
    fn take(&self, len: usize) -> Aligned<E> {
        // A panic elsewhere leaves at worst a buffer too few.
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&len).and_then(Vec::pop);
        kept.unwrap_or_else(|| Aligned::new(len))
    }
    fn give(&self, buffer: Aligned<E>) {
        if !buffer.is_empty() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(buffer.len()).or_default().push(buffer);
        }
    }
}

/// Instruction set and buffers, shared by all threads of a network.
///
/// A training step needs the same few hundred buffers every time. Fresh pages cost more than the
/// arithmetic on them, so buffers are kept by size.
#[derive(Debug)]
pub struct Runtime<E: Element> {
    /// What the kernels are compiled for.
    pub isa: Isa,
    stored: Pool<E>,
    wide: Pool<E::Wide>,
}

impl<E: Element> Runtime<E> {
    /// A runtime for one instruction set, without buffers yet.
    pub fn new(isa: Isa) -> Self {
        Runtime { isa, stored: Pool(Mutex::default()), wide: Pool(Mutex::default()) }
    }

    /// A buffer of `len` elements with arbitrary content.
    pub fn take(&self, len: usize) -> Aligned<E> {
        self.stored.take(len)
    }

    /// Keeps a buffer for the next [`take`](Self::take) of its length.
    pub fn give(&self, buffer: Aligned<E>) {
        self.stored.give(buffer);
    }

    /// The same for what is computed in.
    pub fn take_wide(&self, len: usize) -> Aligned<E::Wide> {
        self.wide.take(len)
    }

    /// Keeps a buffer for the next [`take_wide`](Self::take_wide) of its length.
    pub fn give_wide(&self, buffer: Aligned<E::Wide>) {
        self.wide.give(buffer);
    }
}

/// A buffer that goes back to its runtime when the last reader is gone.
#[derive(Debug)]
pub struct Buffer<E: Element> {
    data: Option<Aligned<E>>,
    runtime: Arc<Runtime<E>>,
}

impl<E: Element> Buffer<E> {
    /// A buffer with arbitrary content.
    pub fn take(runtime: &Arc<Runtime<E>>, len: usize) -> Self {
        Buffer { data: Some(runtime.take(len)), runtime: runtime.clone() }
    }
    /// Its elements.
    pub fn as_slice(&self) -> &[E] {
        self.data.as_deref().unwrap_or_default()
    }
    /// Its elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [E] {
        self.data.as_deref_mut().unwrap_or_default()
    }
}

impl<E: Element> Drop for Buffer<E> {
    fn drop(&mut self) {
        if let Some(data) = self.data.take() {
            self.runtime.give(data);
        }
    }
}
