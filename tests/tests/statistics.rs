//! Statistics against scipy and statsmodels (`scripts/make_statistics.py`).

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use trainer::report::statistics;

fn close(what: &str, found: f64, expected: &Value) {
    let expected = expected.as_f64().unwrap_or_else(|| panic!("{what}: no number"));
    assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1e-3), "{what}: {found}, not {expected}");
}

#[test]
fn as_scipy_and_statsmodels() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/statistics.json");
    let fixture: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let cell = |name: &str| -> Vec<f64> { serde_json::from_value(fixture["cells"][name].clone()).unwrap() };
    let (a, b, c) = (cell("a"), cell("b"), cell("c"));
    let pooled = statistics::pooled([&a[..], &b, &c, &[1.0]]).unwrap();
    close("pooled sd", pooled.sd, &fixture["pooled"]["sd"]);
    close("pooled df", pooled.df, &fixture["pooled"]["df"]);
    close("half width", statistics::half_width(pooled, a.len()), &fixture["half_width_a"]);
    let two = statistics::unpaired(&a, &b, statistics::pooled([&a[..], &b]).unwrap()).unwrap();
    for (key, found) in [
        ("mean", two.mean),
        ("p", two.p),
        ("half_width", two.half_width()),
        ("equivalence_0.2", two.equivalence(0.2)),
        ("equivalence_0.5", two.equivalence(0.5)),
    ] {
        close(key, found, &fixture["ab"][key]);
    }
    close("pooled over all", statistics::unpaired(&a, &b, pooled).unwrap().p, &fixture["ab_pooled_over_all_p"]);
    let paired = statistics::paired(&a, &b).unwrap();
    close("paired mean", paired.mean, &fixture["ab_paired"]["mean"]);
    close("paired p", paired.p, &fixture["ab_paired"]["p"]);
    close("r", cams::metrics::pearson(&a, &b).unwrap(), &fixture["ab_paired"]["r"]);
    let p: Vec<f64> = serde_json::from_value(fixture["holm"]["p"].clone())?;
    for (found, expected) in statistics::holm(&p).iter().zip(fixture["holm"]["corrected"].as_array().unwrap()) {
        close("Holm", *found, expected);
    }
    for case in fixture["mcnemar"].as_array().unwrap() {
        close("McNemar", statistics::mcnemar(case["b"].as_u64().unwrap(), case["c"].as_u64().unwrap()), &case["p"]);
    }
    assert_eq!(statistics::mcnemar(0, 0), 1.0);
    // The least numbers of runs whose power is 80 %, as statsmodels has it.
    for case in fixture["power_at_needed"].as_array().unwrap() {
        let n = statistics::runs_needed(case["gap"].as_f64().unwrap(), case["sd"].as_f64().unwrap()).unwrap();
        assert_eq!(n as u64, case["n"].as_u64().unwrap());
        assert!((case["power"].as_f64().unwrap() - 0.8).abs() < 0.015, "{case}");
    }
    assert!(
        statistics::sd(&[1.0]).is_none()
            && statistics::pooled([&[1.0][..]]).is_none()
            && statistics::paired(&[1.0], &[2.0]).is_none()
    );
    Ok(())
}
