//! What every kernel call needs: the instruction set and reusable memory.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::simd::{Element, Isa};

/// Instruction set and buffers, shared by all threads of a network.
///
/// A training step needs the same few hundred buffers every time. Fresh pages cost more than the
/// arithmetic on them, so buffers are kept by size. They are taken once a task, not in the loops.
#[derive(Debug)]
pub struct Runtime<E> {
    /// What the kernels are compiled for.
    pub isa: Isa,
    free: Mutex<HashMap<usize, Vec<Vec<E>>>>,
}

impl<E: Element> Runtime<E> {
    /// A runtime for one instruction set, without buffers yet.
    pub fn new(isa: Isa) -> Self {
        Runtime { isa, free: Mutex::new(HashMap::new()) }
    }

    fn free(&self) -> MutexGuard<'_, HashMap<usize, Vec<Vec<E>>>> {
        // A panic elsewhere leaves at worst a buffer too few.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A buffer of `len` elements with arbitrary content.
    pub fn take(&self, len: usize) -> Vec<E> {
        let kept = self.free().get_mut(&len).and_then(Vec::pop);
        kept.unwrap_or_else(|| vec![E::default(); len])
    }

    /// Keeps a buffer for the next [`take`](Self::take) of its length.
    pub fn give(&self, buffer: Vec<E>) {
        if !buffer.is_empty() {
            self.free().entry(buffer.len()).or_default().push(buffer);
        }
    }
}
