//! ImageNet and PASCAL VOC as they are distributed, in small sets made here.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use image::{ImageFormat, Rgb, RgbImage};
use testkit::program::call;
use trainer::checkpoint::File;
use trainer::data::prepare::Prepare;
use trainer::data::voc::CLASSES;
use trainer::data::{Source, Split};

/// A file of PASCAL VOC's and ImageNet's form: the image's size, and in it objects (class, box, difficult).
fn annotation([w, h]: [u32; 2], objects: &[(&str, [u32; 4], u8)]) -> String {
    let object = |(class, [x0, y0, x1, y1], difficult): &(&str, [u32; 4], u8)| {
        format!(
            "<object><name>{class}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>\
             <xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        )
    };
    let objects: String = objects.iter().map(object).collect();
    format!("<annotation><size><width>{w}</width><height>{h}</height></size>{objects}</annotation>")
}

/// A JPEG with both of its ends and tables that decode nothing: whole as far as that is seen without decoding it.
fn undecodable(path: &Path) -> Result<()> {
    picture(40, 40).save(path)?;
    let mut bytes = fs::read(path)?;
    // The start of the scan names a Huffman table that is not there.
    let scan = bytes.windows(2).position(|pair| pair == [0xff, 0xda]).context("a scan")?;
    bytes[scan + 6] = 0x33;
    Ok(fs::write(path, bytes)?)
}

/// A picture whose right half is white.
fn picture(w: u32, h: u32) -> RgbImage {
    RgbImage::from_fn(w, h, |x, _| Rgb([if x >= w / 2 { 255 } else { 0 }; 3]))
}

fn imagenet(dir: &Path) -> Result<()> {
    fs::create_dir(dir.join("images"))?;
    picture(400, 200).save(dir.join("images/a.JPEG"))?;
    image::DynamicImage::ImageRgb8(picture(100, 300))
        .to_luma8()
        .save_with_format(dir.join("images/b.JPEG"), ImageFormat::Jpeg)?;
    let whole = fs::read(dir.join("images/a.JPEG"))?;
    fs::write(dir.join("images/cut.JPEG"), &whole[..whole.len() / 2])?;
    picture(50, 50).save(dir.join("images/outside.JPEG"))?;
    fs::write(dir.join("LOC_synset_mapping.txt"), "n02 second\nn01 first\n")?;
    let solution = "ImageId,PredictionString\na,n01 200 0 400 200 \nb,n02 0 0 50 150 n02 50 150 100 300 \n\
                    cut,n01 0 0 10 10 \noutside,n01 0 0 90 10 \nabsent,n01 0 0 1 1 \n";
    Ok(fs::write(dir.join("LOC_val_solution.csv"), solution)?)
}

fn source(name: &str, dir: &Path, size: usize) -> Result<Source> {
    Ok(Source::parse(&format!("{name}:{}", dir.display()))?.of_size(size))
}

#[test]
fn imagenet_s_classes_boxes_and_what_is_wrong_with_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    imagenet(dir.path())?;
    let images = source("imagenet", dir.path(), 32)?.load(Split::Test)?;
    // The mapping's line is the class, whatever the order of the synsets.
    assert_eq!((images.labels.clone(), images.classes, images.shape), (vec![1, 0], 2, [3, 32, 32]));
    let objects = images.objects.as_ref().context("boxes")?;
    assert_eq!(objects[0].iter().map(|o| o.bounds).collect::<Vec<_>>(), [[16, 0, 32, 32]]);
    assert_eq!(objects[1].iter().map(|o| o.bounds).collect::<Vec<_>>(), [[0, 0, 16, 16], [16, 16, 32, 32]]);
    // The box holds what is white.
    let image = images.image(0)?;
    assert!(image[..32 * 32].iter().enumerate().all(|(p, v)| (*v > 128) == (p % 32 >= 16)));
    let notes = images.notes.join("\n");
    assert!(notes.contains("1 of 5 images") && notes.contains("2 images are left out"), "{notes}");
    assert!(notes.contains("truncated") && notes.contains("does not lie in an image of 50 x 50"), "{notes}");
    let error = format!("{:#}", source("imagenet", dir.path(), 32)?.load(Split::Train).unwrap_err());
    assert!(error.contains("validation images only"), "{error}");
    // More that is wrong leaves out what it is about, and says so.
    undecodable(&dir.path().join("images/odd.JPEG"))?;
    fs::copy(dir.path().join("images/a.JPEG"), dir.path().join("images/stranger.JPEG"))?;
    let path = dir.path().join("LOC_val_solution.csv");
    let text = fs::read_to_string(&path)?;
    fs::write(&path, text + "c,n01 0 0 1 1,too,many\nodd,n01 0 0 10 10\n")?;
    let more = source("imagenet", dir.path(), 32)?.load(Split::Test)?;
    assert_eq!((&more.labels, &more.objects), (&images.labels, &images.objects));
    let notes = more.notes.join("\n");
    let parts = ["4 images are left out", "odd.JPEG cannot be decoded", "1 image files are passed over", "(stranger, "];
    for part in parts.into_iter().chain(["line: 7"]) {
        assert!(notes.contains(part), "{notes}");
    }
    fs::write(&path, "ImageId,PredictionString\na;n01 0 0 1 1\n")?;
    let error = format!("{:#}", source("imagenet", dir.path(), 32)?.load(Split::Test).unwrap_err());
    assert!(error.contains("no image of") && error.contains("line: 2"), "{error}");
    fs::write(&path, "ImageId,PredictionString\n")?;
    let error = format!("{:#}", source("imagenet", dir.path(), 32)?.load(Split::Test).unwrap_err());
    assert!(error.contains("LOC_val_solution.csv holds no image"), "{error}");
    Ok(())
}

/// Classes of folders or of the annotations themselves, boxes of XML files, here or there.
#[test]
fn imagenet_s_annotations() -> Result<()> {
    for by_class in [true, false] {
        let dir = tempfile::tempdir()?;
        let (images, boxes) = (dir.path().join("val"), dir.path().join("Annotations/CLS-LOC/val"));
        fs::create_dir_all(&boxes)?;
        let put = |synset: &str, name: &str, xml: Option<String>| -> Result<()> {
            let folder = if by_class { images.join(synset).join("more") } else { images.clone() };
            fs::create_dir_all(&folder)?;
            picture(40, 20).save(folder.join(format!("{name}.JPEG")))?;
            Ok(xml.map_or(Ok(()), |xml| fs::write(boxes.join(format!("{name}.xml")), xml))?)
        };
        put("n03", "a", Some(annotation([40, 20], &[("n03", [20, 0, 40, 20], 0)])))?;
        put("n01", "b", Some(annotation([40, 20], &[("n01", [0, 0, 10, 10], 0), ("n01", [0, 0, 41, 20], 0)])))?;
        put("n01", "small", Some(annotation([80, 40], &[("n01", [0, 0, 10, 10], 0)])))?;
        put("n01", "bare", None)?;
        put("n01", "odd", Some("<annotation>".into()))?;
        fs::create_dir_all(images.join("other"))?;
        picture(40, 20).save(images.join("other/passed-over.JPEG"))?;
        let set = source("imagenet", dir.path(), 20)?.load(Split::Test)?;
        // In the order of the folders, or of the names.
        let order = if by_class { [1, 0] } else { [0, 1] };
        assert_eq!((set.labels.clone(), set.classes), (if by_class { vec![0, 1] } else { vec![1, 0] }, 2));
        let objects = set.objects.as_ref().context("boxes")?;
        let bounds = |i: usize| objects[order[i]].iter().map(|o| o.bounds).collect::<Vec<_>>();
        assert_eq!(bounds(0), [[10, 0, 20, 20]]);
        assert_eq!(bounds(1), [[0, 0, 5, 10], [0, 0, 20, 20]]);
        let notes = set.notes.join("\n");
        for part in
            ["3 images are left out", "an image of 80 x 40, and it has 40 x 20", "bare.JPEG: it has no annotation"]
        {
            assert!(notes.contains(part), "{notes}");
        }
        assert!(notes.contains("odd.xml is no annotation"), "{notes}");
        fs::remove_dir_all(dir.path().join("Annotations"))?;
        let bare = source("imagenet", dir.path(), 20)?.load(Split::Test);
        if by_class {
            assert!(bare?.objects.is_none());
        } else {
            let error = format!("{:#}", bare.unwrap_err());
            assert!(error.contains("nor annotations (XML) of the images"), "{error}");
        }
    }
    Ok(())
}

/// Four channels of ink are the colours that they print.
#[test]
fn printers_colours() -> Result<()> {
    let dir = tempfile::tempdir()?;
    fs::create_dir_all(dir.path().join("val/n01"))?;
    fs::copy(testkit::fixture("cmyk.jpg"), dir.path().join("val/n01/a.JPEG"))?;
    let set = source("imagenet", dir.path(), 16)?.load(Split::Test)?;
    let image = set.image(0)?;
    let at = |x: usize| [0, 1, 2].map(|c| image[(c * 16 + 8) * 16 + x]);
    for (found, expected) in at(2).iter().zip([255, 0, 0]).chain(at(13).iter().zip([0, 255, 0])) {
        assert!(found.abs_diff(expected) <= 2, "{:?} {:?}", at(2), at(13));
    }
    Ok(())
}

/// Labels of one set are not those of a model of another.
#[test]
fn a_model_of_other_classes_is_told() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for synset in ["n01", "n02"] {
        fs::create_dir_all(dir.path().join("val").join(synset))?;
        picture(40, 40).save(dir.path().join("val").join(synset).join("0.JPEG"))?;
    }
    let config = dir.path().join("config.toml");
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("../checkpoints/wrn-16-2-cifar10.safetensors");
    let images = format!("imagenet:{}:test[0..2]", dir.path().display());
    let write = |part: &str| {
        let text = format!("[model]\ncheckpoint = '{}'\nimages = '{images}'\n{part}\n", checkpoint.display());
        fs::write(&config, text)
    };
    let config = config.display().to_string();
    write("[sanity]\nmethods = ['grad_cam']\nclass = 'label'")?;
    call(&["evaluate", "sanity", &config]).assert_fails(1, &["tells 10 classes apart", "has 2", "class = \"top1\""]);
    write("[localization]\nmethods = ['grad_cam']")?;
    call(&["evaluate", "localization", &config]).assert_fails(1, &["tells 10 classes apart", "has 2"]);
    write("[faithfulness]\nmethods = ['grad_cam']\nsteps = 0")?;
    let found = call(&["evaluate", "faithfulness", &config, "--json"]).json();
    assert_eq!((&found["rows"][0]["n"], &found["rows"][0]["average_drop_n"]), (&2.into(), &2.into()));
    for resize in ["0", "31", "5000"] {
        let set = format!("model.resize={resize}");
        let call = call(&["evaluate", "faithfulness", &config, "--set", &set]);
        call.assert_fails(1, &[&format!("resize is {resize}: 32 to 4096")]);
    }
    Ok(())
}

#[test]
fn the_middle_is_kept_with_its_boxes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    imagenet(dir.path())?;
    let mut middle = source("imagenet", dir.path(), 100)?;
    middle.shorter = Some(200);
    let images = middle.load(Split::Test)?;
    // 400 x 200 stays, and its middle 100 x 100 pixels begin at 150, 50.
    assert_eq!(images.objects.as_ref().context("boxes")?[0][0].bounds, [50, 0, 100, 100]);
    // There is no middle of 100 pixels in 99, for a model or for a training.
    middle.shorter = Some(99);
    let error = format!("{:#}", middle.load(Split::Test).unwrap_err());
    assert!(error.contains("resize is 99: 100 to 4096"), "{error}");
    Ok(())
}

#[test]
fn a_folder_for_each_synset() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (synset, n) in [("n03", 1), ("n01", 2)] {
        fs::create_dir_all(dir.path().join("val").join(synset))?;
        for i in 0..n {
            picture(40, 40).save(dir.path().join("val").join(synset).join(format!("{i}.JPEG")))?;
        }
    }
    let images = source("imagenet", dir.path(), 32)?.load(Split::Test)?;
    assert_eq!((images.labels, images.classes), (vec![0, 0, 1], 2));
    let error = format!("{:#}", source("imagenet", &dir.path().join("val/n01"), 32)?.load(Split::Test).unwrap_err());
    assert!(error.contains("neither LOC_val_solution.csv nor folders"), "{error}");
    Ok(())
}

#[test]
fn voc_s_objects() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("VOC2007");
    for folder in ["JPEGImages", "Annotations", "ImageSets/Main"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let picture = |name: &str| picture(200, 100).save(root.join(format!("JPEGImages/{name}.jpg")));
    let write = |name: &str, size: [u32; 2], objects: &[(&str, [u32; 4], u8)]| -> Result<()> {
        picture(name)?;
        Ok(fs::write(root.join(format!("Annotations/{name}.xml")), annotation(size, objects))?)
    };
    let (size, sofa) = ([200, 100], ("sofa", [1, 1, 200, 100], 1));
    write("000001", size, &[("dog", [101, 1, 200, 50], 0), ("cat", [1, 1, 50, 100], 0), sofa])?;
    write("000002", size, &[("unicorn", [1, 1, 9, 9], 0)])?;
    write("000003", size, &[sofa])?;
    // Neither image nor annotation; an image alone; an annotation of another image.
    picture("000005")?;
    write("000006", [5000, 5000], &[("dog", [1, 1, 9, 9], 0)])?;
    let names: String = (1..=6).map(|i| format!("{i:06}\n")).collect();
    fs::write(root.join("ImageSets/Main/test.txt"), names)?;
    let images = source("voc2007", dir.path(), 50)?.load(Split::Test)?;
    assert_eq!((images.len(), images.classes, images.labels[0]), (1, 20, 11));
    let objects = &images.objects.as_ref().context("boxes")?[0];
    let found: Vec<_> = objects.iter().map(|o| (o.class, o.bounds, o.difficult)).collect();
    assert_eq!(found, [(11, [25, 0, 50, 25], false), (7, [0, 0, 13, 50], false), (17, [0, 0, 50, 50], true)]);
    let notes = images.notes.join("\n");
    let parts = ["5 images are left out", "unicorn", "no object that is not difficult", "000004", "000005.xml"];
    for part in parts.into_iter().chain(["000006.jpg: its annotation is of an image of 5000 x 5000"]) {
        assert!(notes.contains(part), "{part}: {notes}");
    }
    let error = format!("{:#}", source("voc2007", dir.path(), 50)?.load(Split::Train).unwrap_err());
    assert!(error.contains("trainval.txt") && error.contains("is there"), "{error}");
    // `trainval` holds the images of `val`: they are not trained on where these are the test.
    let count = |split| -> Result<usize> { Ok(source("voc2007", dir.path(), 50)?.load(split)?.len()) };
    for name in ["000007", "000008", "000009"] {
        write(name, size, &[("dog", [1, 1, 50, 50], 0)])?;
    }
    let list = |name: &str, images: &str| fs::write(root.join(format!("ImageSets/Main/{name}.txt")), images);
    list("trainval", "000007\n000008\n000009\n")?;
    assert_eq!((count(Split::Train)?, count(Split::Test)?), (3, 1));
    fs::remove_file(root.join("ImageSets/Main/test.txt"))?;
    list("train", "000007\n000008\n")?;
    list("val", "000009\n")?;
    assert_eq!((count(Split::Train)?, count(Split::Test)?), (2, 1));
    Ok(())
}

/// A model of one class an image is fine-tuned on images of several: its head is drawn anew, the trunk stays or moves.
#[test]
fn a_model_is_fine_tuned_on_several_classes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("VOC2007");
    for folder in ["JPEGImages", "Annotations", "ImageSets/Main"] {
        fs::create_dir_all(root.join(folder))?;
    }
    // A dog on the left, a car on the right, or both; a difficult cat in some that counts neither way.
    let object = |class: &str, x: u32, difficult: u8| {
        format!(
            "<object><name>{class}</name><difficult>{difficult}</difficult><bndbox><xmin>{}</xmin><ymin>9</ymin>\
             <xmax>{}</xmax><ymax>40</ymax></bndbox></object>",
            x + 1,
            x + 24
        )
    };
    let mut names = vec![];
    for i in 0..24u32 {
        let (dog, car) = (i % 3 != 1, i % 3 != 0);
        let pixel = |x: u32, y: u32| {
            let there = (8..40).contains(&y) && ((x < 32 && dog) || (x >= 32 && car));
            Rgb(if there && x < 32 {
                [250, 60, 10]
            } else if there {
                [10, 60, 250]
            } else {
                [90, (i * 5) as u8, 90]
            })
        };
        let name = format!("{i:06}");
        RgbImage::from_fn(64, 48, pixel).save(root.join(format!("JPEGImages/{name}.jpg")))?;
        let objects = [(dog, object("dog", 4, 0)), (car, object("car", 36, 0)), (i % 4 == 0, object("cat", 0, 1))];
        let objects: String = objects.into_iter().filter(|(there, _)| *there).map(|(_, object)| object).collect();
        let size = "<size><width>64</width><height>48</height><depth>3</depth></size>";
        fs::write(root.join(format!("Annotations/{name}.xml")), format!("<annotation>{size}{objects}</annotation>"))?;
        names.push(name);
    }
    fs::write(root.join("ImageSets/Main/trainval.txt"), names.join("\n"))?;
    fs::write(root.join("ImageSets/Main/test.txt"), names[..12].join("\n"))?;
    let images = source("voc2007", dir.path(), 32)?.load(Split::Test)?;
    let shown = images.shown(0).context("VOC's images show several classes")?;
    let at = |class: &str| shown[CLASSES.iter().position(|c| *c == class).unwrap()];
    assert_eq!((at("dog"), at("car"), at("cat"), at("person")), (1.0, 0.0, -1.0, 0.0));

    let run = |name: &str| dir.path().join(name).display().to_string();
    let train = |to: &str, config: &str| call(&["train", config, "--json", "--run", &run(to)]);
    let config = |name: &str, text: String| -> Result<String> {
        let path = dir.path().join(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let mini = "[data]\nname = 'cifar10-mini'\nlimit = 64\n[student]\narch = 'resnet8'\n";
    let first = config("first.toml", format!("{mini}[train]\nepochs = 1\nbatch = 32\n"))?;
    train("first", &first).json();
    let voc = |student: &str, weights: &str| {
        format!(
            "[data]\nname = 'voc2007'\ndir = '{}'\nsize = 32\naugment = {{ flip = false }}\n\
             [student]\narch = 'resnet8'\ncheckpoint = '{}/last.safetensors'\n{student}\n\
             [loss.weights]\n{weights}\n[optim]\nname = 'adamw'\nlr = 0.02\nweight_decay = 0.0\n\
             [train]\nepochs = 30\nbatch = 8\n",
            dir.path().display(),
            run("first")
        )
    };
    let bce = "ce = 0.0\nbce = 1.0";
    for (name, student, least) in
        [("head", "new_head = true\ntrained = 'head'", 60.0), ("all", "new_head = true", 90.0)]
    {
        let file = config(&format!("{name}.toml"), voc(student, bce))?;
        let report = train(name, &file).json();
        let found = report["test_mean_average_precision"].as_f64().context("no mean average precision")?;
        assert!(found > least, "{name}: {found}");
        let tuned = File::read(&dir.path().join(name).join("last.safetensors"))?;
        let start = File::read(&dir.path().join("first/last.safetensors"))?;
        assert_eq!(tuned.f32("conv1.weight")? == start.f32("conv1.weight")?, name == "head", "{name}");
        assert_eq!(tuned.f32("bn1.running_mean")? == start.f32("bn1.running_mean")?, name == "head", "{name}");
        let (checkpoint, data) =
            (format!("{}/last.safetensors", run(name)), format!("voc2007:{}", dir.path().display()));
        let evaluated = call(&["eval", "--checkpoint", &checkpoint, "--data", &data, "--json"]).json();
        assert!((evaluated["mean_average_precision"].as_f64().context("mAP")? - found).abs() < 1e-9);
    }
    let file = config("other.toml", voc("", bce))?;
    train("other", &file).assert_fails(1, &["new_head = true"]);
    let file = config("mini.toml", format!("{mini}[loss.weights]\n{bce}\n[train]\nepochs = 1\nbatch = 32\n"))?;
    train("mini", &file).assert_fails(1, &["loss.weights.ce"]);
    Ok(())
}

/// What Pillow makes of the same images (`scripts/make_resize.py`), to within a grey level.
#[test]
fn images_are_resized_as_by_pillow() -> Result<()> {
    let file = File::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/resize.safetensors"))?;
    for (name, shape) in file.shapes()? {
        let (w, h) = name.split_once('x').context("a name like 61x47")?;
        let pixel = |x: u32, y: u32| {
            Rgb(std::array::from_fn(|c| {
                let c = c as u32;
                let noise = (x * 7919 + y * 104_729 + c * 1_299_709 + x * y * (c + 1) * 31) % 97;
                ((x * (c + 2) + y * 3 + noise) % 256) as u8
            }))
        };
        let image = image::DynamicImage::ImageRgb8(RgbImage::from_fn(w.parse()?, h.parse()?, pixel));
        let ours = Prepare::stretched(shape[0]).apply(&image);
        let pairs = ours.as_raw().iter().zip(file.integers(&name, 255)?);
        let off = pairs.map(|(a, b)| u32::from(*a).abs_diff(b)).max();
        assert!(off.is_some_and(|off| off <= 1), "{name}: off by {off:?} grey levels");
    }
    Ok(())
}

/// What a camera says of its position is not applied, as by torchvision, and is said.
#[test]
fn a_rotation_that_is_not_applied_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    fs::create_dir_all(dir.path().join("train/a"))?;
    fs::create_dir_all(dir.path().join("test/a"))?;
    let plain = dir.path().join("train/a/plain.jpg");
    picture(40, 20).save(&plain)?;
    // Behind the first marker: an Exif segment whose only entry is the orientation, 6 (a quarter turn).
    let exif = b"\xff\xe1\x00\x22Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let bytes = fs::read(&plain)?;
    fs::write(dir.path().join("train/a/turned.jpg"), [&bytes[..2], exif, &bytes[2..]].concat())?;
    fs::copy(&plain, dir.path().join("test/a/plain.jpg"))?;
    let train = source("folder", dir.path(), 16)?.load(Split::Train)?;
    assert_eq!(train.image(0)?, train.image(1)?);
    assert!(
        train.notes.iter().any(|note| note.contains("1 of 2 images") && note.contains("EXIF")),
        "{:?}",
        train.notes
    );
    assert!(!source("folder", dir.path(), 16)?.load(Split::Test)?.notes.iter().any(|note| note.contains("EXIF")));
    Ok(())
}
