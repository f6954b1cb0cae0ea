//! The messages of ONNX's file format that a network of ours needs, with the field numbers of its `onnx.proto`.
//!
//! Scalar fields are optional although we always set them: a zero must stand in the file, not be left out.

use prost::Message;

/// A file.
#[derive(Clone, PartialEq, Message)]
pub struct Model {
    #[prost(int64, optional, tag = "1")]
    pub ir_version: Option<i64>,
    #[prost(string, tag = "2")]
    pub producer_name: String,
    #[prost(string, tag = "3")]
    pub producer_version: String,
    #[prost(string, tag = "6")]
    pub doc_string: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<Property>,
}

/// Which meaning the operators' names have.
#[derive(Clone, PartialEq, Message)]
pub struct OperatorSet {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, optional, tag = "2")]
    pub version: Option<i64>,
}

/// A line of metadata.
#[derive(Clone, PartialEq, Message)]
pub struct Property {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Nodes, constants, what goes in and what comes out.
#[derive(Clone, PartialEq, Message)]
pub struct Graph {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<Value>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<Value>,
}

/// An operator at work.
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<Attribute>,
}

/// A setting of an operator: one of its three values, and which.
#[derive(Clone, PartialEq, Message)]
pub struct Attribute {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    #[prost(int32, optional, tag = "20")]
    pub kind: Option<i32>,
}

impl Attribute {
    const FLOAT: i32 = 1;
    const INT: i32 = 2;
    const INTS: i32 = 7;

    /// A number.
    pub fn float(name: &str, value: f32) -> Attribute {
        Attribute { name: name.into(), f: Some(value), kind: Some(Self::FLOAT), ..Attribute::default() }
    }
    /// A whole number.
    pub fn int(name: &str, value: usize) -> Attribute {
        Attribute { name: name.into(), i: Some(value as i64), kind: Some(Self::INT), ..Attribute::default() }
    }
    /// Whole numbers.
    pub fn ints(name: &str, values: &[usize]) -> Attribute {
        let ints = values.iter().map(|v| *v as i64).collect();
        Attribute { name: name.into(), ints, kind: Some(Self::INTS), ..Attribute::default() }
    }
}

/// A constant.
#[derive(Clone, PartialEq, Message)]
pub struct Tensor {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, optional, tag = "2")]
    pub data_type: Option<i32>,
    #[prost(string, tag = "8")]
    pub name: String,
    /// Little-endian.
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
}

impl Tensor {
    /// Numbers in single precision.
    pub const FLOAT: i32 = 1;
    /// Whole numbers of 64 bits.
    pub const INT64: i32 = 7;

    /// An f32 constant.
    pub fn f32(name: String, shape: &[usize], values: &[f32]) -> Tensor {
        Self::of(name, shape, Self::FLOAT, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
    /// An i64 constant, one number after another.
    pub fn i64(name: String, values: &[i64]) -> Tensor {
        Self::of(name, &[values.len()], Self::INT64, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
    fn of(name: String, shape: &[usize], data_type: i32, raw_data: Vec<u8>) -> Tensor {
        Tensor { dims: shape.iter().map(|d| *d as i64).collect(), data_type: Some(data_type), name, raw_data }
    }
}

/// A named input or output.
#[derive(Clone, PartialEq, Message)]
pub struct Value {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub kind: Option<Kind>,
    #[prost(string, tag = "3")]
    pub doc_string: String,
}

impl Value {
    /// An f32 tensor of any number of images, each of this shape.
    pub fn of_images(name: &str, shape: &[usize], about: &str) -> Value {
        let batch = Dimension { value: None, parameter: Some("batch".into()) };
        let sizes = shape.iter().map(|d| Dimension { value: Some(*d as i64), parameter: None });
        let shape = Dimensions { dim: std::iter::once(batch).chain(sizes).collect() };
        let tensor = TensorKind { elem_type: Some(Tensor::FLOAT), shape: Some(shape) };
        Value { name: name.into(), kind: Some(Kind { tensor: Some(tensor) }), doc_string: about.into() }
    }
}

/// What a value is: here always a tensor.
#[derive(Clone, PartialEq, Message)]
pub struct Kind {
    #[prost(message, optional, tag = "1")]
    pub tensor: Option<TensorKind>,
}

/// A tensor's type and sizes.
#[derive(Clone, PartialEq, Message)]
pub struct TensorKind {
    #[prost(int32, optional, tag = "1")]
    pub elem_type: Option<i32>,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Dimensions>,
}

/// Sizes.
#[derive(Clone, PartialEq, Message)]
pub struct Dimensions {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

/// A size: a number, or a name where it may be any.
#[derive(Clone, PartialEq, Message)]
pub struct Dimension {
    #[prost(int64, optional, tag = "1")]
    pub value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub parameter: Option<String>,
}
