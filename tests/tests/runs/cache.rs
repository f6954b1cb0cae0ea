//! What a teacher has said, kept: the same as asking it.

use std::path::PathBuf;

use anyhow::Result;

use super::Lab;

/// A run with the cache has the losses of one without; a second student reads what the first has left.
#[test]
fn cached_signals_change_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let views = ["--set", "data.views=2"];
    let cache = format!("teacher.cache={}", lab.path("cache"));
    // Of views, and of the test images.
    let folders = |of: &str| -> Result<Vec<PathBuf>> {
        std::fs::read_dir(lab.path(of))?
            .map(|e| Ok(e?.path()))
            .filter(|p| !matches!(p, Ok(p) if p.ends_with("test")))
            .collect()
    };
    let live = lab.train("live", &views).json();
    let cached = |run: &str| lab.train(run, &[&views[..], &["--set", &cache]].concat());
    let first = cached("first").json();
    let (own, test) = (folders("cache")?, folders("cache/test")?);
    assert_eq!((own.len(), test.len()), (1, 1));
    let files = [own[0].join("view-0.class_maps"), own[0].join("view-1.class_maps"), test[0].join("view-0.logits")];
    let kept: Vec<_> = files.iter().map(|f| Ok(std::fs::read(f)?)).collect::<Result<_>>()?;
    let second = cached("second").json();
    // Damaged files are noticed and made again.
    for file in &files[1..] {
        let bytes = std::fs::read(file)?;
        std::fs::write(file, &bytes[..bytes.len() / 2])?;
    }
    let call = cached("third");
    for file in ["view-1.class_maps is damaged", "view-0.logits is damaged"] {
        assert!(call.stderr.contains(file), "{}", call.stderr);
    }
    for (run, report) in [("first", &first), ("second", &second), ("third", &call.json())] {
        lab.assert_same("live", run);
        assert_eq!(report["agreement"], live["agreement"], "{run}");
    }
    assert!(live["agreement"]["maps"]["score_cam"]["n"].as_u64().is_some_and(|n| n > 0), "{live}");
    for (file, kept) in files.iter().zip(&kept) {
        assert!(std::fs::read(file)? == *kept, "{}", file.display());
    }
    // One that cannot be made costs a sentence, not the run.
    std::fs::create_dir(lab.path("blocked"))?;
    std::fs::write(lab.path("blocked/test"), "")?;
    let blocked = format!("teacher.cache={}", lab.path("blocked"));
    let call = lab.train("blocked-run", &[&views[..], &["--set", &blocked]].concat());
    assert_eq!(call.json()["agreement"], live["agreement"]);
    assert!(call.stderr.contains("of the test images is not kept"), "{}", call.stderr);
    // Shap-CAM with another fill and a distance of all classes ask for nothing new; another teacher is another cache.
    let before = std::fs::read_dir(&own[0])?.count();
    for set in [
        "interpreter.shap_cam.fill=channel_mean",
        "loss.distance=all_class_pooled",
        "loss.distance=region_kl",
        "loss.interpreter=grad_cam",
    ] {
        let run = set.replace(['.', '='], "-");
        lab.train(&format!("live-{run}"), &[&views[..], &["--set", set]].concat()).json();
        lab.train(&run, &[&views[..], &["--set", &cache, "--set", set]].concat()).json();
        lab.assert_same(&format!("live-{run}"), &run);
    }
    assert_eq!(std::fs::read_dir(&own[0])?.count(), before);
    // Another seed sees the same views in another order: the same cache serves it. Other views do not meet it.
    lab.train("seeded", &[&views[..], &["--set", &cache, "--seed", "5"]].concat()).json();
    assert_eq!(folders("cache")?.len(), 1);
    lab.train("shifted", &[&views[..], &["--set", &cache, "--set", "data.seed=5"]].concat()).json();
    assert_eq!((folders("cache")?.len(), folders("cache/test")?.len()), (2, 1));
    Ok(())
}
