//! PyTorch's files: a zip archive with a pickle that describes tensors and their storages as files beside it.
//!
//! Nothing in a pickle is run: it is read as data, and what is not a mapping of tensors is passed over. (candle's own
//! reader knows neither strided storages nor dictionaries in dictionaries, and trusts the lengths that a file claims.)

mod pickle;
mod tensors;

use std::collections::HashMap;
use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use pickle::Pickle;
pub use tensors::Mapping;
use tensors::{Info, mappings};
use zip::ZipArchive;

use crate::checkpoint::Named;

/// A file, and the mappings of tensors in it.
pub struct Pth {
    archive: ZipArchive<Cursor<Vec<u8>>>,
    /// Folder of the storages in the archive.
    folder: String,
    /// Bytes that may still be read: a file's parts are no longer than the file, however often it names them.
    budget: usize,
    /// Bytes of the file.
    whole: usize,
    /// The storages in use, as they were read.
    storages: HashMap<String, Vec<u8>>,
    /// In the order in which a reader of the file would meet them.
    pub mappings: Vec<Mapping>,
}

impl Pth {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Pth> {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Pth::parse(bytes).with_context(|| path.display().to_string())
    }

    /// Reads a file's bytes.
    pub fn parse(bytes: Vec<u8>) -> Result<Pth> {
        ensure!(
            !is_legacy(&bytes),
            "this is PyTorch's format of before version 1.6; rewrite it once, with a PyTorch of today:\n  \
             python -c \"import torch, sys; torch.save(torch.load(sys.argv[1], map_location='cpu', weights_only=False), \
             sys.argv[2])\" old.pth new.pth"
        );
        let budget = bytes.len();
        let mut archive = ZipArchive::new(Cursor::new(bytes)).context(
            "it is not a whole file of torch.save (a zip archive): it is truncated, damaged or something else",
        )?;
        let names: Vec<String> = (0..archive.len())
            .map(|i| Ok(archive.by_index_raw(i)?.name()?.into_owned()))
            .collect::<Result<_>>()
            .context("the archive is damaged")?;
        let pickle = names.iter().find(|n| n.ends_with("/data.pkl") || *n == "data.pkl");
        let pickle = pickle.context("the archive holds no data.pkl: it is not a file of torch.save")?;
        let root = pickle.trim_end_matches("data.pkl").to_string();
        ensure!(
            !names.contains(&format!("{root}constants.pkl")),
            "this is a TorchScript program; save its weights with torch.save(model.state_dict(), ...)"
        );
        if names.contains(&format!("{root}byteorder")) {
            let order = read(&mut archive, &format!("{root}byteorder"))?;
            ensure!(order == b"little", "its numbers are big-endian; little-endian ones are read");
        }
        let pickle = Pickle::parse(&read(&mut archive, pickle)?).context("the pickle in the file is damaged")?;
        let mappings = mappings(&pickle);
        Ok(Pth { archive, folder: format!("{root}data/"), budget, whole: budget, storages: HashMap::new(), mappings })
    }

    /// The tensors of a mapping, as rows of f32.
    pub fn tensors(&mut self, mapping: usize) -> Result<Named> {
        let Some(mapping) = self.mappings.get(mapping) else { bail!("there is no such mapping") };
        let infos = mapping.tensors.clone();
        let count = |info: &Info| info.shape.iter().try_fold(1usize, |n, s| n.checked_mul(*s));
        let all = infos.values().try_fold(0usize, |sum, info| sum.checked_add(count(info)?));
        ensure!(
            all.is_some_and(|n| n <= self.whole),
            "its tensors hold more numbers than the file has bytes: it is damaged"
        );
        let read = |(name, info): (String, Info)| {
            let values = self.values(&info).with_context(|| name.clone())?;
            Ok((name, (info.shape, values)))
        };
        infos.into_iter().map(read).collect()
    }

    /// A tensor's elements in the order of its axes, wherever its strides say they lie.
    fn values(&mut self, info: &Info) -> Result<Vec<f32>> {
        let Info { dtype, offset, shape, strides, .. } = info;
        let name = format!("{}{}", self.folder, info.storage);
        if !self.storages.contains_key(&name) {
            let bytes = read(&mut self.archive, &name)?;
            self.budget =
                self.budget.checked_sub(bytes.len()).context("its parts are longer than the file: it is damaged")?;
            self.storages.insert(name.clone(), bytes);
        }
        let bytes = &self.storages[&name];
        let there = bytes.len() / dtype.size();
        let damaged =
            || format!("its {shape:?} elements do not lie in the {there} of its storage: the file is damaged");
        let count = shape.iter().try_fold(1usize, |n, s| n.checked_mul(*s)).with_context(damaged)?;
        let reach = shape
            .iter()
            .zip(strides)
            .try_fold(*offset, |at, (n, stride)| at.checked_add(n.saturating_sub(1).checked_mul(*stride)?));
        ensure!(
            shape.len() == strides.len() && (count == 0 || (count <= there && reach.is_some_and(|r| r < there))),
            "{}",
            damaged()
        );
        let mut values = Vec::with_capacity(count);
        let mut index = vec![0; shape.len()];
        let mut at = *offset;
        for _ in 0..count {
            values.push(dtype.value(&bytes[at * dtype.size()..]));
            // To the next element, the last axis first.
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                at += strides[axis];
                if index[axis] < shape[axis] {
                    break;
                }
                at -= strides[axis] * shape[axis];
                index[axis] = 0;
            }
        }
        Ok(values)
    }
}

/// Reads a pickle by itself: how many mappings of tensors it describes.
pub fn check_pickle(bytes: &[u8]) -> Result<usize> {
    let pickle = Pickle::parse(bytes)?;
    Ok(mappings(&pickle).len())
}

/// A file of the archive, which is no longer than the archive.
fn read(archive: &mut ZipArchive<Cursor<Vec<u8>>>, name: &str) -> Result<Vec<u8>> {
    let file = archive.by_name(name).with_context(|| format!("the archive holds no whole {name}"))?;
    let limit = file.compressed_size();
    let mut bytes = Vec::new();
    // To its end, where its checksum is compared; files of torch.save are stored as they are.
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .with_context(|| format!("{name} in the archive is damaged"))?;
    ensure!(bytes.len() as u64 <= limit, "{name} in the archive is compressed; files of torch.save are not");
    Ok(bytes)
}

/// The old format begins with a pickle of one number.
fn is_legacy(bytes: &[u8]) -> bool {
    const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
    bytes.len() > 14 && bytes[0] == 0x80 && bytes[2..4] == [0x8a, 10] && bytes[4..14] == MAGIC
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Pickles as torch.save writes them, one instruction after another.
    #[derive(Default)]
    struct Writer(Vec<u8>);

    impl Writer {
        fn raw(mut self, bytes: &[u8]) -> Self {
            self.0.extend(bytes);
            self
        }
        fn text(self, text: &str) -> Self {
            self.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text.as_bytes())
        }
        fn class(self, module: &str, name: &str) -> Self {
            self.raw(format!("c{module}\n{name}\n").as_bytes())
        }
        fn numbers(self, numbers: &[u32]) -> Self {
            numbers.iter().fold(self.raw(b"("), |w, n| w.raw(b"J").raw(&n.to_le_bytes())).raw(b"t")
        }
        /// A call of `_rebuild_tensor_v2`.
        fn tensor(self, storage: &str, class: &str, offset: u8, shape: &[u32], strides: &[u32]) -> Self {
            self.class("torch._utils", "_rebuild_tensor_v2")
                .raw(b"((")
                .text("storage")
                .class("torch", class)
                .text(storage)
                .text("cpu")
                .raw(b"K\x06tQK")
                .raw(&[offset])
                .numbers(shape)
                .numbers(strides)
                .raw(b"\x89")
                .class("collections", "OrderedDict")
                .raw(b")RtR")
        }
        fn file(self, storages: &[(&str, &[u8])]) -> Vec<u8> {
            let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
            let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
            zip.start_file("archive/data.pkl", stored).unwrap();
            zip.write_all(&[&b"\x80\x02"[..], &self.0, b"."].concat()).unwrap();
            for (name, bytes) in storages {
                zip.start_file(format!("archive/data/{name}"), stored).unwrap();
                zip.write_all(bytes).unwrap();
            }
            zip.finish().unwrap().into_inner()
        }
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn strides_say_where_elements_lie() -> Result<()> {
        let storage = f32s(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        // Rows, columns first (as channels_last leaves a kernel), and from the second element on.
        for (offset, strides, expected) in [
            (0, [3, 1], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
            (0, [1, 2], [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]),
            (1, [3, 1], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        ] {
            let file =
                Writer::default().raw(b"}(").text("w").tensor("0", "FloatStorage", offset, &[2, 3], &strides).raw(b"u");
            let mut pth = Pth::parse(file.file(&[("0", &storage)]))?;
            assert_eq!(pth.mappings.len(), 1);
            assert_eq!(pth.tensors(0)?["w"], (vec![2, 3], expected.to_vec()));
        }
        Ok(())
    }

    #[test]
    fn mappings_in_dictionaries_are_found_and_named() -> Result<()> {
        // {"net": OrderedDict(w = ...), "best_acc1": tensor, "acc": 93.1, "epoch": 3, "optimizer": {"state": {}}}
        let file = Writer::default()
            .raw(b"}(")
            .text("best_acc1")
            .tensor("1", "DoubleStorage", 0, &[], &[])
            .text("acc")
            .raw(b"G@WFfffff")
            .text("net")
            .class("collections", "OrderedDict")
            .raw(b")R(")
            .text("w")
            .tensor("0", "BFloat16Storage", 0, &[2], &[1])
            .raw(b"u}")
            .text("_metadata")
            .raw(b"Nsb")
            .text("epoch")
            .raw(b"K\x03")
            .text("optimizer")
            .raw(b"}")
            .text("state")
            .raw(b"}s")
            .raw(b"u");
        let mut pth = Pth::parse(file.file(&[("0", &[0x80, 0x3f, 0x00, 0xc0]), ("1", &93.5f64.to_le_bytes())]))?;
        let keys: Vec<_> = pth.mappings.iter().map(|m| m.key.as_str()).collect();
        assert_eq!(keys, ["", "net"]);
        assert_eq!(pth.tensors(0)?["best_acc1"], (vec![], vec![93.5]));
        assert_eq!(pth.tensors(1)?["w"], (vec![2], vec![1.0, -2.0]));
        Ok(())
    }

    #[test]
    fn what_a_file_claims_is_checked() {
        let storage = f32s(&[0.0; 6]);
        for (offset, shape, strides) in [
            (1, [2u32, 3], [3u32, 1]),
            (0, [2, 3], [4, 1]),
            (0, [1 << 30, 1 << 30], [1, 1]),
            (0, [u32::MAX >> 1, 1], [0, 0]),
            (0, [2, 3], [u32::MAX >> 1, 1]),
        ] {
            let file =
                Writer::default().raw(b"}(").text("w").tensor("0", "FloatStorage", offset, &shape, &strides).raw(b"u");
            let mut pth = Pth::parse(file.file(&[("0", &storage)])).unwrap();
            let error = format!("{:#}", pth.tensors(0).unwrap_err());
            assert!(error.contains("damaged"), "{shape:?} {strides:?}: {error}");
        }
        for (bytes, part) in [
            (b"garbage".to_vec(), "not a whole file of torch.save"),
            (Writer::default().raw(b"X\xff\xff\xff\xff").file(&[]), "the pickle in the file is damaged"),
            (Writer::default().raw(b"\xee").file(&[]), "the pickle in the file is damaged"),
        ] {
            let error = format!("{:#}", Pth::parse(bytes).map(drop).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
        // A bit of a weight, which the archive's checksum tells.
        let mut file = Writer::default()
            .raw(b"}(")
            .text("w")
            .tensor("0", "FloatStorage", 0, &[6], &[1])
            .raw(b"u")
            .file(&[("0", &f32s(&[1.0; 6]))]);
        let at = file.windows(8).position(|w| w == f32s(&[1.0, 1.0])).unwrap();
        file[at] ^= 1;
        let error = format!("{:#}", Pth::parse(file).unwrap().tensors(0).unwrap_err());
        assert!(error.contains("damaged"), "{error}");
        // Classes made of one long text, over and over; ten million tuples in one another, and a dictionary that holds
        // itself.
        let deep = Writer::default().raw(b")").raw(&vec![0x85; 10_000_000]);
        assert!(check_pickle(&[&deep.0[..], b"."].concat()).is_ok_and(|n| n == 0));
        let long = Writer::default().text(&"x".repeat(1 << 20)).raw(b"q\x00").raw(&b"h\x00h\x00\x930".repeat(100_000));
        assert!(check_pickle(&[&long.0[..], b"."].concat()).is_ok_and(|n| n == 0));
        let circle = Writer::default().raw(b"}q\x00").text("a").raw(b"h\x00s.");
        assert_eq!(check_pickle(&circle.0).unwrap(), 0);
    }
}
