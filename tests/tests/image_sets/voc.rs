//! PASCAL VOC: several objects an image.

use std::fs;

use anyhow::{Context, Result};
use image::{Rgb, RgbImage};
use testkit::program::call;
use trainer::checkpoint::File;
use trainer::data::Split;
use trainer::data::voc::CLASSES;

use crate::{annotation, picture, source};

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
