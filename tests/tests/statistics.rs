//! Statistics against scipy and statsmodels (`scripts/make_statistics.py`).

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use trainer::report::statistics::{self, Design};

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
    let welch = statistics::welch(&a, &c).unwrap();
    close("Welch's p", welch.p, &fixture["ac_welch"]["p"]);
    close("Welch's df", welch.df, &fixture["ac_welch"]["df"]);
    for case in fixture["alike"].as_array().unwrap() {
        let groups: Vec<Vec<f64>> = serde_json::from_value(case["groups"].clone())?;
        let found = statistics::alike(&groups).unwrap();
        close("intraclass correlation", found.correlation, &case["correlation"]);
        close("p of the conditions", found.p, &case["p"]);
    }
    let constant = [vec![1.0, 2.0], vec![3.0, 4.0]];
    assert!(statistics::alike(&constant).is_none() && statistics::alike(&[vec![1.0, 2.0], vec![3.0]]).is_none());
    // The least numbers of runs whose power is 80 %, as the distributions have it.
    let number = |of: &Value| of.as_f64().unwrap();
    let least = |case: &Value, found: Option<usize>| {
        assert_eq!(found.map(|n| n as u64), case["n"].as_u64(), "{case}");
        assert!(number(&case["power"][1]) > 0.79 && number(&case["power"][0]) < 0.81, "{case}");
    };
    for case in fixture["power_at_needed"].as_array().unwrap() {
        let [cells, tests] = ["cells", "tests"].map(|key| case[key].as_u64().unwrap() as usize);
        least(case, Design { cells, tests }.runs_needed(number(&case["gap"]), number(&case["sd"])));
    }
    close("power of two", number(&fixture["power_at_needed"][0]["power"][1]), &fixture["power_of_two"]);
    for case in fixture["equivalence_at_needed"].as_array().unwrap() {
        let design = Design { cells: case["cells"].as_u64().unwrap() as usize, tests: 1 };
        least(case, design.runs_for_equivalence(number(&case["margin"]), number(&case["sd"])));
    }
    // What does not scatter is not compared, even if its sums are rounded.
    let rounded = [6.7, 6.7, 6.7 + 1e-15];
    assert_eq!(statistics::pooled([&rounded[..]]).unwrap().sd, 0.0);
    assert!(statistics::unpaired(&rounded, &a, statistics::pooled([&rounded[..]]).unwrap()).is_none());
    assert!(
        statistics::sd(&[1.0]).is_none()
            && statistics::pooled([&[1.0][..]]).is_none()
            && statistics::paired(&[1.0], &[2.0]).is_none()
    );
    Ok(())
}
