//! What a run found as one HTML page that needs nothing from elsewhere: no scripts, no fonts, no pictures but its own SVG.
//!
//! Every row of a report is a chart: a bar for each column as long as the median, a whisker from the lowest to the highest
//! round. Each chart has its own scale, which begins at zero, so that lengths within one compare.

use super::report::{Better, Report, Results, show};

const STYLE: &str = "\
body{font:15px/1.45 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
h1{font-size:1.6rem}h2{margin-top:2.5rem;border-bottom:1px solid #bbb}h3{font-size:1rem;margin:1.4rem 0 .2rem}\
table{border-collapse:collapse;font-size:.8rem;display:block;overflow-x:auto}\
td,th{padding:.25rem .5rem;border:1px solid #ccc;text-align:right}td:first-child,th:first-child{text-align:left}\
.spread{color:#777;white-space:nowrap}svg{width:100%;height:auto}svg text{font:13px system-ui,sans-serif;fill:currentColor}\
.whisker{stroke:currentColor;stroke-width:1.5}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}td,th{border-color:#444}}";
/// Of the bars, told apart also without colour sight.
const COLOURS: [&str; 8] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#a09a20", "#888888"];
/// Where the bars begin and end, in the chart's own units.
const BARS_LEFT: f64 = 250.0;
const BARS_RIGHT: f64 = 820.0;

/// The page.
pub fn page(results: &Results) -> String {
    let name = escaped(results.name);
    let mut text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>Holdfast: bench {name}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>bench {name}</h1>\n\
         <p>Only ratios within this run mean something: the machine and its load decide the rest. Bars are medians of \
         interleaved rounds, whiskers reach from the lowest to the highest round.</p>\n<table>\n"
    );
    for (what, value) in &results.conditions {
        text += &format!("<tr><td>{}</td><td>{}</td></tr>\n", escaped(what), escaped(value));
    }
    text += "</table>\n";
    if let Some(failure) = &results.failure {
        text += &format!("<p><strong>Not complete: {}</strong></p>\n", escaped(failure));
    }
    text += "<ul>\n";
    results.notes.iter().for_each(|note| text += &format!("<li>{}</li>\n", escaped(note)));
    text += "</ul>\n";
    results.reports.iter().for_each(|report| text += &section(report));
    text + "</body></html>\n"
}

fn section(report: &Report) -> String {
    let (title, unit) = report.title();
    let better = match report.better() {
        Better::Higher => "longer is better",
        Better::Lower => "shorter is better",
        Better::NearestOne => "nearest to 1 is better",
    };
    let mut text = format!("<h2>{}</h2>\n<p>{}; {better}</p>\n", escaped(title), escaped(unit));
    for row in report.rows() {
        text += &format!("<h3>{}</h3>\n{}", escaped(row), chart(report, row));
    }
    text + &table(report)
}

fn chart(report: &Report, row: &str) -> String {
    const STEP: usize = 24;
    const BAR: usize = 16;
    let bars: Vec<_> = report
        .columns()
        .iter()
        .enumerate()
        .filter_map(|(index, column)| Some((index, column, report.cell(row, column)?)))
        .collect();
    let longest = bars.iter().map(|(_, _, cell)| cell.high).fold(0.0, f64::max);
    let scale = if longest > 0.0 { (BARS_RIGHT - BARS_LEFT) / longest } else { 0.0 };
    let at = |figure: f64| BARS_LEFT + figure.max(0.0) * scale;
    let height = bars.len() * STEP + 8;
    let mut text = format!("<svg viewBox=\"0 0 960 {height}\" role=\"img\" aria-label=\"{}\">\n", escaped(row));
    for (line, (index, column, cell)) in bars.iter().enumerate() {
        let (top, colour) = (line * STEP + 4, COLOURS[index % COLOURS.len()]);
        let (middle, label) = (top + BAR / 2, top + BAR - 3);
        let (low, median, high) = (at(cell.low), at(cell.median), at(cell.high));
        let rounds: Vec<String> = report.rounds(row, column).unwrap_or_default().iter().map(|&one| show(one)).collect();
        text += &format!(
            "<g><title>{name}: rounds {rounds}</title>\
             <text x=\"{name_x}\" y=\"{label}\" text-anchor=\"end\">{name}</text>\
             <rect x=\"{BARS_LEFT}\" y=\"{top}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\
             <path class=\"whisker\" fill=\"none\" d=\"M{low:.1} {middle}H{high:.1}M{low:.1} {cap}v8M{high:.1} {cap}v8\"/>\
             <text x=\"{figure_x:.1}\" y=\"{label}\">{figure}</text></g>\n",
            name = escaped(column),
            rounds = rounds.join(", "),
            name_x = BARS_LEFT - 8.0,
            width = median - BARS_LEFT,
            cap = middle - 4,
            figure_x = high + 8.0,
            figure = show(cell.median),
        );
    }
    text + "</svg>\n"
}

fn table(report: &Report) -> String {
    let mut text = "<h3>All figures</h3>\n<table>\n<tr><th></th>".to_owned();
    report.columns().iter().for_each(|column| text += &format!("<th>{}</th>", escaped(column)));
    text += "</tr>\n";
    for row in report.rows() {
        text += &format!("<tr><td>{}</td>", escaped(row));
        for column in report.columns() {
            text += &match report.cell(row, column) {
                Some(cell) => format!(
                    "<td>{} <span class=\"spread\">{}–{}</span></td>",
                    show(cell.median),
                    show(cell.low),
                    show(cell.high)
                ),
                None => "<td>–</td>".to_owned(),
            };
        }
        text += "</tr>\n";
    }
    text + "</table>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let mut report = Report::new("Requests", "a second", Better::Higher);
        for (column, figures) in [("ours", [100.0, 50.0, 200.0]), ("<theirs>", [25.0, 25.0, 25.0])] {
            figures.iter().for_each(|figure| report.add("4 KiB & more", column, *figure));
        }
        report.add("only ours", "ours", 0.0);
        let conditions = vec![("rounds", "3".to_owned())];
        let notes = vec!["\"none\" was left out".to_owned()];
        Results { name: "write", conditions, notes, failure: Some("a > b".to_owned()), reports: vec![report] }
    }

    #[test]
    fn bars_are_medians_and_whiskers_reach_from_the_lowest_to_the_highest_round() {
        let page = page(&results());
        // 200 takes the whole width of 570 from 250 on.
        assert!(page.contains("<rect x=\"250\" y=\"4\" width=\"285.0\""), "{page}");
        assert!(page.contains("M392.5 12H820.0"), "{page}");
        assert!(page.contains("<rect x=\"250\" y=\"28\" width=\"71.2\""), "{page}");
        assert!(page.contains("ours: rounds 100, 50.0, 200"), "{page}");
    }

    #[test]
    fn the_page_stands_alone_and_is_well_formed() {
        let page = page(&results());
        for foreign in ["<script", "http:", "https:", "@import", "url("] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert!(
            page.contains("&lt;theirs&gt;") && page.contains("&quot;none&quot;") && page.contains("4 KiB &amp; more")
        );
        for name in ["svg", "table", "tr", "td", "th", "g", "text", "section", "h2", "h3", "ul", "li", "body", "html"] {
            let opened = page.matches(&format!("<{name}>")).count() + page.matches(&format!("<{name} ")).count();
            assert_eq!(opened, page.matches(&format!("</{name}>")).count(), "{name}");
        }
    }

    #[test]
    fn a_row_of_nothing_but_zero_has_no_endless_bar() {
        let page = page(&results());
        assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
    }
}
