//! The page: self-contained, escaped, complete; and the same each time.

use luthier_measure::frontier::frontier_page;
use luthier_measure::measurements::Measurement;
use luthier_measure::report::{LossCurve, Page, Sample, render_page};

fn model(name: &str, loss: f64, parameters: u64) -> Measurement {
    Measurement {
        name: name.into(),
        validation_loss_nats: Some(loss),
        parameters: Some(parameters),
        file_bytes: Some(parameters * 2),
        decode_tokens_per_s: Some(5e8 / parameters as f64),
        peak_rss_bytes: Some(parameters * 3 + 20_000_000),
        ..Measurement::default()
    }
}

/// The demonstration's page, made up.
fn demo() -> Page {
    let curve = |name: &str, from: f64, to: f64| LossCurve {
        name: name.into(),
        points: (0..=40).map(|n| (n * 5000, to + (from - to) * (-(n as f64) / 8.0).exp())).collect(),
    };
    Page {
        title: "A <demo> & more".into(),
        paragraphs: vec!["What \"came\" out.".into()],
        measurements: vec![
            model("adapted", 3.21, 8_100_000),
            model("random_init", 5.9, 8_100_000),
            model("decoder_only", 3.1, 4_200_000),
        ],
        curves: vec![curve("adapted", 4.5, 3.2), curve("random_init", 8.3, 5.9)],
        samples: vec![Sample {
            name: "adapted".into(),
            prompt: "Once <b>".into(),
            continuation: "upon\u{0} a time\n</mark>".into(),
        }],
        notes: vec!["seed 1".into()],
    }
}

#[test]
fn the_page_loads_nothing_and_runs_nothing() {
    let html = render_page(&demo()).unwrap();
    for forbidden in ["http://", "https://", "<script", "@import", "url(", "src=", "\u{0}"] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    assert!(html.contains("default-src 'none'"));
    assert_eq!(html, render_page(&demo()).unwrap());
}

#[test]
fn texts_are_shown_as_they_are() {
    let html = render_page(&demo()).unwrap();
    assert!(html.contains("<h1>A &lt;demo&gt; &amp; more</h1>"));
    assert!(html.contains("Once &lt;b&gt;") && html.contains("upon\u{fffd} a time\n&lt;/mark&gt;"));
    let name = "\"><img src=x onerror=alert(1)>=\"#010101\"";
    let html = frontier_page(&[model(name, 3.0, 1000), model("b", 2.0, 2000)]).unwrap();
    assert!(!html.contains("<img") && !html.contains("=\"var(--grid)\"&"));
}

#[test]
fn every_chart_has_a_name_a_description_and_no_left_over_colour() {
    let html = render_page(&demo()).unwrap();
    assert_eq!(html.matches("role=\"img\"").count(), 5);
    assert_eq!(html.matches("<desc id=").count(), 5);
    assert!(!html.contains("\"#01"), "a placeholder colour is left");
    for key in ["by-parameters", "by-file_bytes", "by-decode_tokens_per_s", "by-peak_rss_bytes", "curves"] {
        assert!(html.contains(&format!("id=\"{key}-title\"")), "{key}");
    }
    // The table has a row for each model; the parent is on the front by size, the others are not.
    assert_eq!(html.matches("<th role=\"rowheader\"").count(), 3);
    assert!(html.contains("On the front: decoder_only."));
}

#[test]
fn pages_with_little_in_them_are_drawn_too() {
    let bare = Measurement { name: "x".into(), ..Measurement::default() };
    assert!(!frontier_page(std::slice::from_ref(&bare)).unwrap().contains("role=\"img\""));
    let odd = Measurement {
        validation_loss_nats: Some(0.0),
        parameters: Some(0),
        decode_tokens_per_s: Some(0.0),
        peak_rss_bytes: Some(u64::MAX),
        ..bare
    };
    assert_eq!(frontier_page(&[odd.clone(), odd]).unwrap().matches("role=\"img\"").count(), 3);
    let nan = LossCurve { name: "n".into(), points: vec![(0, f64::NAN), (1, f64::INFINITY)] };
    let page = Page { title: "t".into(), curves: vec![nan.clone()], ..Page::default() };
    assert!(!render_page(&page).unwrap().contains("role=\"img\""));
    let long = LossCurve { name: "n".into(), points: (0..100_000).map(|n| (n, 3.0)).collect() };
    let page = Page { title: "t".into(), curves: vec![nan, long], ..Page::default() };
    let html = render_page(&page).unwrap();
    assert!(html.contains("role=\"img\"") && html.len() < 100_000, "{}", html.len());
}
