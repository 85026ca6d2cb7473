//! Plots as SVG text, to stand inside a page: lines over an axis, and bars with a name each.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::SegmentValue;
use plotters::prelude::*;

const WIDTH: u32 = 760;
const LINES_HEIGHT: u32 = 300;
const BAR_HEIGHT: u32 = 26;
const FONT: (&str, u32) = ("sans-serif", 13);
/// Colours that stay apart for those who see red and green alike.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// A line.
#[derive(Clone, Debug)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

/// A bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What stands beside it.
    pub name: String,
    /// How long it is.
    pub value: f64,
    /// Bars with the same number have the same colour.
    pub kind: usize,
}

/// Lines, with a legend.
pub fn lines(title: &str, x_name: &str, y_name: &str, series: &[Series]) -> Result<String> {
    let points = || series.iter().flat_map(|line| &line.points);
    let x_max = points().map(|point| point.0).fold(1e-9, f64::max);
    let y_max = points().map(|point| point.1).fold(1e-9, f64::max) * 1.05;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, LINES_HEIGHT)).into_drawing_area();
        let mut builder = ChartBuilder::on(&area);
        builder.caption(title, FONT).margin(8).x_label_area_size(36).y_label_area_size(64);
        let mut chart = builder.build_cartesian_2d(0.0..x_max, 0.0..y_max).map_err(broken)?;
        chart.configure_mesh().x_desc(x_name).y_desc(y_name).light_line_style(WHITE).draw().map_err(broken)?;
        for (index, line) in series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let drawn = LineSeries::new(line.points.iter().copied(), colour.stroke_width(2));
            let entry = move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2));
            chart.draw_series(drawn).map_err(broken)?.label(line.name.as_str()).legend(entry);
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw().map_err(broken)?;
        area.present().map_err(broken)?;
    }
    Ok(svg)
}

/// Bars, from top to bottom, with their values at their ends.
pub fn bars(title: &str, x_name: &str, bars: &[Bar]) -> Result<String> {
    let max = bars.iter().map(|bar| bar.value).fold(1e-9, f64::max) * 1.15;
    let height = 80 + BAR_HEIGHT * bars.len() as u32;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let mut builder = ChartBuilder::on(&area);
        builder.caption(title, FONT).margin(8).x_label_area_size(36).y_label_area_size(240);
        let rows = (0..bars.len()).into_segmented();
        let mut chart = builder.build_cartesian_2d(0.0..max, rows).map_err(broken)?;
        // Rows count from the bottom.
        let of_row = |row: usize| bars.len().checked_sub(row + 1).and_then(|index| bars.get(index));
        let name = |row: &SegmentValue<usize>| match row {
            SegmentValue::CenterOf(row) => of_row(*row).map_or_else(String::new, |bar| bar.name.clone()),
            _ => String::new(),
        };
        let mut mesh = chart.configure_mesh();
        mesh.disable_y_mesh().light_line_style(WHITE).x_desc(x_name).y_labels(bars.len()).y_label_formatter(&name);
        mesh.draw().map_err(broken)?;
        for row in 0..bars.len() {
            let Some(bar) = of_row(row) else { continue };
            let corners = [(0.0, SegmentValue::Exact(row)), (bar.value, SegmentValue::Exact(row + 1))];
            let mut drawn = Rectangle::new(corners, COLOURS[bar.kind % COLOURS.len()].filled());
            drawn.set_margin(4, 4, 0, 0);
            let value = super::table::short(bar.value);
            let text = Text::new(value, (bar.value, SegmentValue::CenterOf(row)), FONT);
            chart.draw_series([drawn]).map_err(broken)?;
            chart.draw_series([text]).map_err(broken)?;
        }
        area.present().map_err(broken)?;
    }
    Ok(svg)
}

fn broken(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("a plot: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plots_hold_their_names_and_need_nothing_from_outside() {
        let series = Series { name: "first".to_owned(), points: vec![(0.0, 1.0), (1.0, 3.0)] };
        let bar = Bar { name: "one bar".to_owned(), value: 2.5, kind: 0 };
        let drawn = [lines("title", "s", "MiB/s", &[series]).expect("lines"), bars("t", "x", &[bar]).expect("bars")];
        for (svg, words) in drawn.iter().zip([["title", "first"], ["one bar", "2.50"]]) {
            assert!(svg.starts_with("<svg") && words.iter().all(|word| svg.contains(word)), "{svg}");
            assert!(!svg.contains("href") && !svg.contains("url("), "{svg}");
        }
    }

    #[test]
    fn no_data_is_an_empty_plot_and_not_an_error() {
        lines("t", "x", "y", &[]).expect("lines");
        bars("t", "x", &[]).expect("bars");
    }
}
