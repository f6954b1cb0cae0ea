//! ImageNet and PASCAL VOC as they are distributed, in small sets made here.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use image::{ImageFormat, Rgb, RgbImage};
use trainer::data::{Source, Split};

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
    let object = |class: &str, [x0, y0, x1, y1]: [u32; 4], difficult: u8| {
        format!(
            "<object><name>{class}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>\
             <xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        )
    };
    let write = |name: &str, objects: &[String]| -> Result<()> {
        picture(200, 100).save(root.join(format!("JPEGImages/{name}.jpg")))?;
        let text =
            format!("<annotation><size><width>200</width><height>100</height></size>{}</annotation>", objects.concat());
        Ok(fs::write(root.join(format!("Annotations/{name}.xml")), text)?)
    };
    let (dog, cat, sofa) =
        (object("dog", [101, 1, 200, 50], 0), object("cat", [1, 1, 50, 100], 0), object("sofa", [1, 1, 200, 100], 1));
    write("000001", &[dog, cat, sofa.clone()])?;
    write("000002", &[object("unicorn", [1, 1, 9, 9], 0)])?;
    write("000003", &[sofa])?;
    fs::write(root.join("ImageSets/Main/test.txt"), "000001\n000002\n000003\n000004\n")?;
    let images = source("voc2007", dir.path(), 50)?.load(Split::Test)?;
    assert_eq!((images.len(), images.classes, images.labels[0]), (1, 20, 11));
    let objects = &images.objects.as_ref().context("boxes")?[0];
    let found: Vec<_> = objects.iter().map(|o| (o.class, o.bounds, o.difficult)).collect();
    assert_eq!(found, [(11, [25, 0, 50, 25], false), (7, [0, 0, 13, 50], false), (17, [0, 0, 50, 50], true)]);
    let notes = images.notes.join("\n");
    assert!(notes.contains("3 images are left out") && notes.contains("unicorn"), "{notes}");
    assert!(notes.contains("no object that is not difficult") && notes.contains("000004"), "{notes}");
    let error = format!("{:#}", source("voc2007", dir.path(), 50)?.load(Split::Train).unwrap_err());
    assert!(error.contains("trainval.txt") && error.contains("is there"), "{error}");
    Ok(())
}
