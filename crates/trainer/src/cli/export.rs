use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use trainer::checkpoint::File;
use trainer::checkpoint::onnx::{self, CLASS_MAPS, IMAGES, LOGITS, OPSET};
use trainer::files::{check_output, make_parent, write_atomically};
use trainer::models::Architecture;

use super::Done;
use super::model::ModelArgs;

/// Arguments of `trainer export`.
#[derive(Args)]
pub(super) struct ExportArgs {
    /// The model.
    #[command(flatten)]
    model: ModelArgs,
    /// The .onnx file to write.
    output: PathBuf,
    /// Hand out every class's map beside the logits (CAM; where the model ends in average pooling and a linear layer).
    #[arg(long)]
    maps: bool,
}

/// `trainer export`.
pub(super) fn run(args: &ExportArgs) -> Result<Done> {
    let path = args.output.display();
    ensure!(
        args.output.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")),
        "{path}: what is written is ONNX; name the file so, as in student.onnx"
    );
    check_output(&args.output, &[args.model.path()?.into()])?;
    let file = File::read(args.model.path()?)?;
    let architecture = file.architecture(args.model.arch.as_deref())?;
    let weights = file.state_dict(&architecture)?;
    let mut metadata = file.metadata.clone();
    // The statistics are inside now, and nobody shall apply them twice; settings name folders of this machine; and the
    // channels' means are for a method that no runtime has.
    metadata.retain(|key, _| !["mean", "std", "config", "feature_mean"].contains(&key.as_str()));
    let bytes = onnx::encode(&architecture, &weights, &file.normalization()?, &metadata, args.maps)?;
    make_parent(&args.output)?;
    write_atomically(&args.output, &bytes)?;
    let Architecture { graph, classes, .. } = &architecture;
    let (image, last) = (graph.shapes[0], graph.shape(graph.last()));
    let images = [image.channels, image.h, image.w];
    let (parameters, kilobytes) = (architecture.parameters(), bytes.len() / 1000);
    let mut text = format!(
        "{path}: {}, {parameters} parameters, {kilobytes} kB, opset {OPSET}\n  {IMAGES:<11}(batch, {}, {}, {}), f32, RGB from 0 to 1 (the normalisation is inside)\n  {LOGITS:<11}(batch, {classes})\n",
        architecture.name, image.channels, image.h, image.w,
    );
    let mut outputs = json!({ LOGITS: [classes] });
    if args.maps {
        outputs[CLASS_MAPS] = json!([classes, last.h, last.w]);
        text += &format!(
            "  {CLASS_MAPS:<11}(batch, {classes}, {}, {}), signed CAM: a map's mean plus the class's bias is its logit\n",
            last.h, last.w
        );
    }
    let value = json!({
        "file": args.output.display().to_string(), "arch": architecture.name, "parameters": parameters, "bytes": bytes.len(), "opset": OPSET,
        "inputs": { IMAGES: images }, "outputs": outputs,
    });
    Ok(Done::Result(text, value))
}
