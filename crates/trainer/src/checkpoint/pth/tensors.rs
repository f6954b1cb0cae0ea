//! What a pickle says of tensors: mappings of names to tensors, wherever they stand in it.

use std::collections::{BTreeMap, HashSet};

use half::{bf16, f16};

use super::pickle::{Object, Pickle, Value};

/// A mapping of names to tensors in a file.
pub struct Mapping {
    /// Where it was found: the keys that lead to it, joined by dots; empty for the file's own.
    pub key: String,
    pub(super) tensors: BTreeMap<String, Info>,
}

impl Mapping {
    /// How many tensors it names.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }
    /// Whether it names none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }
}

/// What a pickle says of a tensor.
#[derive(Clone, Debug)]
pub(super) struct Info {
    pub storage: String,
    pub dtype: Dtype,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// Element types of storages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dtype {
    F32,
    F64,
    F16,
    Bf16,
    U8,
    I8,
    I16,
    I32,
    I64,
    Bool,
}

impl Dtype {
    fn of_class(name: &str) -> Option<Dtype> {
        Some(match name {
            "FloatStorage" => Dtype::F32,
            "DoubleStorage" => Dtype::F64,
            "HalfStorage" => Dtype::F16,
            "BFloat16Storage" => Dtype::Bf16,
            "ByteStorage" => Dtype::U8,
            "CharStorage" => Dtype::I8,
            "ShortStorage" => Dtype::I16,
            "IntStorage" => Dtype::I32,
            "LongStorage" => Dtype::I64,
            "BoolStorage" => Dtype::Bool,
            _ => return None,
        })
    }

    pub fn size(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 => 2,
            Dtype::U8 | Dtype::I8 | Dtype::Bool => 1,
        }
    }

    /// One element, from its little-endian bytes.
    pub fn value(self, b: &[u8]) -> f32 {
        match self {
            Dtype::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Dtype::F64 => f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32,
            Dtype::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
            Dtype::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            Dtype::U8 | Dtype::Bool => f32::from(b[0]),
            Dtype::I8 => f32::from(b[0] as i8),
            Dtype::I16 => f32::from(i16::from_le_bytes([b[0], b[1]])),
            Dtype::I32 => i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32,
            Dtype::I64 => i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32,
        }
    }
}

/// Of names of tensors, in bytes, and of a tensor's axes: a file that refers to a long one again and again must not
/// multiply it.
const LONGEST_NAME: usize = 1024;
const MOST_AXES: usize = 16;

/// Dictionaries in dictionaries that are looked through.
const DEPTH: usize = 4;

/// The mappings of tensors in a pickle, in the order in which a reader of the file would meet them.
pub(super) fn mappings(pickle: &Pickle) -> Vec<Mapping> {
    let mut search = Search { pickle, seen: HashSet::new(), found: vec![] };
    search.collect(pickle.root, "", DEPTH);
    search.found
}

/// Finds the mappings of tensors among objects.
struct Search<'p> {
    pickle: &'p Pickle,
    seen: HashSet<Object>,
    found: Vec<Mapping>,
}

impl Search<'_> {
    /// A text that can be a name.
    fn text(&self, object: Object) -> Option<&str> {
        match self.pickle.get(object) {
            Value::Text(text) if text.len() <= LONGEST_NAME => Some(text),
            _ => None,
        }
    }

    fn collect(&mut self, object: Object, key: &str, depth: usize) {
        let Value::Dict(entries) = self.pickle.get(object) else { return };
        if !self.seen.insert(object) {
            return;
        }
        let tensors = entries
            .iter()
            .filter_map(|(name, value)| Some((self.text(*name)?.to_string(), self.tensor(*value, DEPTH)?)));
        let tensors: BTreeMap<String, Info> = tensors.collect();
        if !tensors.is_empty() {
            self.found.push(Mapping { key: key.into(), tensors });
        }
        if depth > 0 {
            for (name, value) in entries {
                if let Some(name) = self.text(*name) {
                    let key = if key.is_empty() { name.to_string() } else { format!("{key}.{name}") };
                    self.collect(*value, &key, depth - 1);
                }
            }
        }
    }

    /// The tensor that an object describes, if it does: calls of `torch._utils._rebuild_tensor_v2` and what wraps them.
    fn tensor(&self, object: Object, depth: usize) -> Option<Info> {
        match self.pickle.get(object) {
            Value::Call(function, arguments) => self.called(*function, *arguments, depth.checked_sub(1)?),
            _ => None,
        }
    }

    fn called(&self, function: Object, arguments: Object, depth: usize) -> Option<Info> {
        let Value::Class(module, name) = *self.pickle.get(function) else { return None };
        let Value::Tuple(arguments) = self.pickle.get(arguments) else { return None };
        match (self.text(module)?, self.text(name)?) {
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                self.tensor(*arguments.first()?, depth)
            }
            ("torch._tensor", "_rebuild_from_type_v2") => {
                self.called(*arguments.first()?, *arguments.get(2)?, depth.checked_sub(1)?)
            }
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => {
                let [storage, offset, shape, strides, ..] = arguments[..] else { return None };
                let Value::Persistent(id) = self.pickle.get(storage) else { return None };
                let Value::Tuple(id) = self.pickle.get(*id) else { return None };
                let Value::Class(_, class) = *self.pickle.get(*id.get(1)?) else { return None };
                let number = |object: &Object| match self.pickle.get(*object) {
                    Value::Int(n) => usize::try_from(*n).ok(),
                    _ => None,
                };
                let numbers = |object: Object| match self.pickle.get(object) {
                    Value::Tuple(all) if all.len() <= MOST_AXES => all.iter().map(number).collect::<Option<Vec<_>>>(),
                    _ => None,
                };
                Some(Info {
                    storage: self.text(*id.get(2)?)?.to_string(),
                    dtype: Dtype::of_class(self.text(class)?)?,
                    offset: number(&offset)?,
                    shape: numbers(shape)?,
                    strides: numbers(strides)?,
                })
            }
            _ => None,
        }
    }
}
