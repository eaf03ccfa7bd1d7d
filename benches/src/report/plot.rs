//! Small drawings in SVG: a bar of ratios, and lines over two logarithmic axes.

use std::fmt::Write;

use crate::record::PhaseResult;
use crate::report::tables;

const WIDTH: f64 = 760.0;
const OURS: &str = "#2563eb";
const NATIVE: &str = "#9a6a1c";
const INK: &str = "#6b7280";
const GRID: &str = "#d1d5db";

/// A line of points, ours or a rival's.
pub struct Line {
    pub label: String,
    pub ours: bool,
    pub points: Vec<(f64, f64)>,
}

/// A logarithmic axis: values to pixels.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// An axis over whole decades that hold all positive `values`.
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for exponent in values.filter(|value| *value > 0.0).map(f64::log10) {
            low = low.min(exponent.floor());
            high = high.max(exponent.ceil());
        }
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        Self { low, high: high.max(low + 1.0), from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value.log10() - self.low) / (self.high - self.low);
        self.from + part.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// The decades.
    fn ticks(&self) -> impl Iterator<Item = f64> {
        (self.low as i32..=self.high as i32).map(|exponent| 10f64.powi(exponent))
    }
}

fn open(height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"{INK}\">\n"
    )
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('`', "");
    let _ =
        writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>");
}

fn stroke(out: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(
        out,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" \
         stroke=\"{colour}\" stroke-width=\"{width}\"/>"
    );
}

fn dot(out: &mut String, x: f64, y: f64, colour: &str) {
    let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>");
}

/// Median and quartiles of each phase's ratio to native on one logarithmic axis; left of 1 is
/// faster than native. A short bar marks the goal.
pub fn ratios(phases: &[&PhaseResult]) -> String {
    const LEFT: f64 = 250.0;
    const ROW: f64 = 22.0;
    let top = 36.0;
    let bottom = top + ROW * phases.len() as f64;
    let mut out = open(bottom + 28.0);
    let values = phases.iter().filter_map(|phase| phase.ratio());
    let values = values.flat_map(|ratio| [ratio.p25, ratio.p75, 1.0]);
    let axis = Axis::over(values, LEFT, WIDTH - 30.0);
    text(&mut out, LEFT, 16.0, "start", "time, agentfs / native (left of 1: faster)");
    for tick in axis.ticks() {
        let heavy = tick == 1.0;
        let (colour, width) = if heavy { (INK, 1.5) } else { (GRID, 1.0) };
        stroke(&mut out, (axis.at(tick), top), (axis.at(tick), bottom), colour, width);
        text(&mut out, axis.at(tick), bottom + 18.0, "middle", &tick.to_string());
    }
    for (index, phase) in phases.iter().enumerate() {
        let y = top + ROW * (index as f64 + 0.5);
        let Some(ratio) = phase.ratio() else { continue };
        text(&mut out, LEFT - 12.0, y + 4.0, "end", &tables::title(phase));
        stroke(&mut out, (axis.at(ratio.p25), y), (axis.at(ratio.p75), y), OURS, 3.0);
        dot(&mut out, axis.at(ratio.median), y, OURS);
        if let Some(goal) = phase.goal {
            stroke(&mut out, (axis.at(goal), y - 7.0), (axis.at(goal), y + 7.0), NATIVE, 2.0);
        }
    }
    text(&mut out, WIDTH - 30.0, 16.0, "end", "bar: goal");
    out.push_str("</svg>\n");
    out
}

/// Lines over two logarithmic axes, ours drawn full and rivals dashed.
pub fn lines(title: &str, across: &str, up: &str, lines: &[Line]) -> String {
    const HEIGHT: f64 = 380.0;
    let (left, right, top, bottom) = (70.0, 540.0, 36.0, HEIGHT - 44.0);
    let mut out = open(HEIGHT);
    let points = || lines.iter().flat_map(|line| line.points.iter());
    let x = Axis::over(points().map(|point| point.0), left, right);
    let y = Axis::over(points().map(|point| point.1), bottom, top);
    text(&mut out, left, 16.0, "start", &format!("{title} ({up})"));
    for tick in x.ticks() {
        stroke(&mut out, (x.at(tick), top), (x.at(tick), bottom), GRID, 1.0);
        text(&mut out, x.at(tick), bottom + 18.0, "middle", &tick.to_string());
    }
    for tick in y.ticks() {
        stroke(&mut out, (left, y.at(tick)), (right, y.at(tick)), GRID, 1.0);
        text(&mut out, left - 8.0, y.at(tick) + 4.0, "end", &tick.to_string());
    }
    text(&mut out, (left + right) / 2.0, HEIGHT - 8.0, "middle", across);
    // Labels stand beside the last point, moved apart where lines end together.
    let mut labels: Vec<(f64, usize)> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let colour = if line.ours { OURS } else { NATIVE };
        let dash = if line.ours { "" } else { " stroke-dasharray=\"6 4\"" };
        let mut path = String::new();
        for point in &line.points {
            let _ = write!(path, "{:.1},{:.1} ", x.at(point.0), y.at(point.1));
            dot(&mut out, x.at(point.0), y.at(point.1), colour);
        }
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
            path.trim_end()
        );
        labels.extend(line.points.last().map(|point| (y.at(point.1), index)));
    }
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut next = top;
    for (height, index) in labels {
        let height = height.max(next);
        text(&mut out, right + 12.0, height + 4.0, "start", &lines[index].label);
        next = height + 16.0;
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::sample;

    #[test]
    fn an_axis_spans_whole_decades() {
        let axis = Axis::over([0.02, 3.0].into_iter(), 0.0, 300.0);
        assert_eq!(axis.ticks().collect::<Vec<_>>(), [0.01, 0.1, 1.0, 10.0]);
        assert_eq!(axis.at(0.01), 0.0);
        assert!((axis.at(0.1) - 100.0).abs() < 1e-9);
        assert_eq!(axis.at(1e9), 300.0);
        let one = Axis::over([1.0].into_iter(), 0.0, 1.0);
        assert!(one.high > one.low);
        assert!(Axis::over(std::iter::empty(), 0.0, 1.0).at(5.0).is_finite());
    }

    #[test]
    fn drawings_hold_no_bad_number_and_escape_text() {
        let record = sample();
        let measured: Vec<_> = record.phases.iter().filter(|p| p.ratio().is_some()).collect();
        let line = |label: &str| Line {
            label: label.into(),
            ours: true,
            points: vec![(1e3, 0.0), (1e6, 20.0)],
        };
        for drawing in [ratios(&measured), lines("a & b", "x", "y", &[line("<l>"), line("m")])] {
            assert!(!drawing.contains("NaN") && !drawing.contains("inf"), "{drawing}");
            assert_eq!(drawing.matches("<svg").count(), drawing.matches("</svg>").count());
            assert!(!drawing.contains("a & b") && !drawing.contains("<l>"));
        }
    }
}
