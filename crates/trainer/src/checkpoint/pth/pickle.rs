//! Python's pickles (protocols 0 to 5, as far as torch.save uses them), as data. What a pickle would call is kept as a
//! call and never made. Every length is checked against the bytes that are there, and an object that is met again is
//! shared, not copied: memory grows with the file and not with what it claims.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};

/// The number of an object of a [`Pickle`]: objects refer to each other by it, so that neither depth nor circles
/// matter.
pub type Object = usize;

/// What a pickle can describe.
#[derive(Debug, Default)]
pub enum Value {
    /// A whole number; larger ones than this holds are `Other`.
    Int(i64),
    /// Text, or bytes that are text.
    Text(String),
    /// A module's name and a name in it.
    Class(Object, Object),
    /// Also lists that were complete when they were made.
    Tuple(Vec<Object>),
    /// Keys and values, in the order in which they were added.
    Dict(Vec<(Object, Object)>),
    /// A function and its arguments.
    Call(Object, Object),
    /// What lies outside of the pickle.
    Persistent(Object),
    /// Anything else.
    #[default]
    Other,
}

/// The objects of a pickle.
pub struct Pickle {
    values: Vec<Value>,
    /// What it describes.
    pub root: Object,
}

impl Pickle {
    /// Reads the first pickle of some bytes.
    pub fn parse(bytes: &[u8]) -> Result<Pickle> {
        let mut machine = Machine { rest: bytes, values: vec![], stack: vec![], marks: vec![], memo: HashMap::new() };
        let root = machine.run()?;
        Ok(Pickle { values: machine.values, root })
    }

    /// What an object is.
    pub fn get(&self, object: Object) -> &Value {
        &self.values[object]
    }
}

struct Machine<'b> {
    rest: &'b [u8],
    values: Vec<Value>,
    stack: Vec<Object>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Object>,
}

impl<'b> Machine<'b> {
    fn take(&mut self, len: usize) -> Result<&'b [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len).context("it ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    fn unsigned(&mut self, len: usize) -> Result<u64> {
        Ok(self.take(len)?.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    fn long(&mut self, len: usize) -> Result<Value> {
        let bytes = self.take(len)?;
        if bytes.len() > 8 {
            return Ok(Value::Other);
        }
        let unsigned = bytes.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        let shift = 64 - 8 * bytes.len() as u32;
        Ok(Value::Int(if bytes.is_empty() { 0 } else { ((unsigned << shift) as i64) >> shift }))
    }

    fn line(&mut self) -> Result<&'b str> {
        let end = self.rest.iter().position(|b| *b == b'\n').context("a line without an end")?;
        let line = self.take(end + 1)?;
        std::str::from_utf8(&line[..end]).context("a name that is not text")
    }

    fn text(&mut self, len: u64) -> Result<Value> {
        let bytes = self.take(usize::try_from(len).context("a text of no plausible length")?)?;
        Ok(std::str::from_utf8(bytes).map_or(Value::Other, |text| Value::Text(text.into())))
    }

    fn push(&mut self, value: Value) {
        self.values.push(value);
        self.stack.push(self.values.len() - 1);
    }

    fn pop(&mut self) -> Result<Object> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            bail!("it takes something from an empty stack");
        }
        self.stack.pop().context("it takes something from an empty stack")
    }

    /// Everything above the last mark.
    fn above_mark(&mut self) -> Result<Vec<Object>> {
        let mark = self.marks.pop().context("a mark is missing")?;
        if self.stack.len() < mark {
            bail!("a mark is above the stack");
        }
        Ok(self.stack.split_off(mark))
    }

    fn last(&self) -> Result<Object> {
        self.stack.last().copied().context("the stack is empty")
    }

    fn set_items(&mut self, items: Vec<Object>) -> Result<()> {
        let last = self.last()?;
        if let Value::Dict(entries) = &mut self.values[last] {
            entries.extend(items.as_chunks().0.iter().map(|[key, value]| (*key, *value)));
        }
        Ok(())
    }

    fn recall(&mut self, id: u32) -> Result<()> {
        let object = *self.memo.get(&id).context("it refers to what was never kept")?;
        self.stack.push(object);
        Ok(())
    }

    fn keep(&mut self, id: u32) -> Result<()> {
        let object = self.last()?;
        self.memo.insert(id, object);
        Ok(())
    }

    /// A module's name and a name in it, from the stack.
    fn class(&mut self) -> Result<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        self.push(Value::Class(module, name));
        Ok(())
    }

    fn call(&mut self) -> Result<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let is = |object: Object, words: &[&str]| match &self.values[object] {
            Value::Text(text) => words.contains(&text.as_str()),
            _ => false,
        };
        let made = match self.values[function] {
            Value::Class(module, name) if is(module, &["collections"]) && is(name, &["OrderedDict", "defaultdict"]) => {
                Value::Dict(vec![])
            }
            _ => Value::Call(function, arguments),
        };
        self.push(made);
        Ok(())
    }

    fn run(&mut self) -> Result<Object> {
        loop {
            let code = self.take(1)?[0];
            match code {
                b'.' => return self.pop(),
                // Protocol, frames: of no interest.
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.above_mark()?),
                b'2' => self.stack.push(self.last()?),
                // Numbers, constants.
                b'N' | 0x88 | 0x89 => self.push(Value::Other),
                b'K' => {
                    let n = self.unsigned(1)?;
                    self.push(Value::Int(n as i64));
                }
                b'M' => {
                    let n = self.unsigned(2)?;
                    self.push(Value::Int(n as i64));
                }
                b'J' => {
                    let n = self.unsigned(4)?;
                    self.push(Value::Int(i64::from(n as u32 as i32)));
                }
                0x8a | 0x8b => {
                    let len = self.unsigned(if code == 0x8a { 1 } else { 4 })?;
                    let value = self.long(len as usize)?;
                    self.push(value);
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Other);
                }
                b'I' | b'L' | b'F' | b'S' | b'V' => {
                    let number = self.line()?.trim_end_matches('L').parse();
                    self.push(number.map_or(Value::Other, Value::Int));
                }
                // Text and bytes.
                b'X' | b'T' | b'B' => {
                    let len = self.unsigned(4)?;
                    let value = self.text(len)?;
                    self.push(value);
                }
                0x8c | b'U' | b'C' => {
                    let len = self.unsigned(1)?;
                    let value = self.text(len)?;
                    self.push(value);
                }
                0x8d | 0x8e | 0x96 => {
                    let len = self.unsigned(8)?;
                    let value = self.text(len)?;
                    self.push(value);
                }
                // Classes and calls.
                b'c' => {
                    for _ in 0..2 {
                        let text = self.line()?.to_string();
                        self.push(Value::Text(text));
                    }
                    self.class()?;
                }
                0x93 => self.class()?,
                b'R' | 0x81 => self.call()?,
                0x92 => {
                    self.pop()?; // Arguments by name.
                    self.call()?;
                }
                b'b' => drop(self.pop()?), // An object's state: of a dictionary nothing that matters here.
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Value::Persistent(id));
                }
                b'P' => {
                    self.line()?;
                    self.push(Value::Other);
                }
                // Collections.
                b'}' => self.push(Value::Dict(vec![])),
                b']' | b')' | 0x8f => self.push(Value::Tuple(vec![])),
                b't' | b'l' | 0x91 => {
                    let all = self.above_mark()?;
                    self.push(Value::Tuple(all));
                }
                0x85..=0x87 => {
                    let mut all = (0..code - 0x84).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
                    all.reverse();
                    self.push(Value::Tuple(all));
                }
                b'd' => {
                    let all = self.above_mark()?;
                    self.push(Value::Dict(vec![]));
                    self.set_items(all)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(vec![key, value])?;
                }
                b'u' => {
                    let all = self.above_mark()?;
                    self.set_items(all)?;
                }
                // Lists that grow hold nothing that is looked for.
                b'a' => drop(self.pop()?),
                b'e' | 0x90 => drop(self.above_mark()?),
                // The memo.
                b'q' | b'h' => {
                    let id = self.unsigned(1)? as u32;
                    if code == b'q' { self.keep(id)? } else { self.recall(id)? }
                }
                b'r' | b'j' => {
                    let id = self.unsigned(4)? as u32;
                    if code == b'r' { self.keep(id)? } else { self.recall(id)? }
                }
                b'p' | b'g' => {
                    let id = self.line()?.parse().context("a number of the memo")?;
                    if code == b'p' { self.keep(id)? } else { self.recall(id)? }
                }
                0x94 => self.keep(self.memo.len() as u32)?,
                _ => bail!("an unknown instruction {code:#04x}"),
            }
        }
    }
}
