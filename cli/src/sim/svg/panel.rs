//! Where a value of a moment is on the picture.

use std::fmt::Write;

/// A rectangle with time from left to right.
#[derive(Debug, Clone, Copy)]
pub(super) struct Panel {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) height: f64,
    /// Seconds at the left and at the right.
    pub(super) time: (f64, f64),
}

/// From bottom to top.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    /// Milliseconds.
    pub(super) fn logarithmic(low: f64, high: f64) -> Self {
        let low = low.max(0.001);
        Self { low: low * 0.9, high: high.max(low * 2.0) * 1.1, logarithmic: true }
    }

    /// Shares.
    pub(super) fn shares(low: f64, high: f64) -> Self {
        Self { low, high, logarithmic: false }
    }

    /// 0 at the bottom, 1 at the top.
    fn part(&self, value: f64) -> f64 {
        let part = if self.logarithmic {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        part.clamp(0.0, 1.0)
    }

    /// Where to draw a line, and what to call it.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
        if !self.logarithmic {
            let middle = f64::midpoint(self.low, self.high);
            let percent = |value: f64| (value * 1000.0).round() / 10.0;
            let label = |value: f64| (value, format!("{} %", percent(value)));
            return [self.low, middle, self.high].map(label).to_vec();
        }
        let within = |digits: &[f64]| -> Vec<f64> {
            let all = (-3..=7).flat_map(|e| digits.iter().map(move |n| n * 10f64.powi(e)));
            all.filter(|value| (self.low..=self.high).contains(value)).collect()
        };
        let ticks = match within(&[1.0, 2.0, 5.0]) {
            many if many.len() > 8 => within(&[1.0]),
            few if few.len() < 3 => within(&[1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0]),
            ticks => ticks,
        };
        let label = |value: f64| match value {
            value if value >= 1000.0 => (value, format!("{} s", value / 1000.0)),
            // Powers of ten are not exact below one.
            value => (value, format!("{} ms", (value * 1000.0).round() / 1000.0)),
        };
        ticks.into_iter().map(label).collect()
    }
}

impl Panel {
    pub(super) fn x(&self, seconds: f64) -> f64 {
        let (from, to) = self.time;
        let part = (seconds - from) / (to - from).max(1.0);
        self.left + (self.right - self.left) * part.clamp(0.0, 1.0)
    }

    pub(super) fn y(&self, value: f64, scale: &Scale) -> f64 {
        self.top + self.height * (1.0 - scale.part(value))
    }

    /// Whole seconds, about six of them.
    pub(super) fn time_ticks(&self) -> Vec<f64> {
        let (from, to) = self.time;
        let steps = [1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0];
        let fits = |step: &&f64| (to - from) / **step <= 8.0;
        let step = steps.iter().find(fits).copied().unwrap_or(600.0);
        let first = (from / step).ceil() * step;
        (0..).map(|n| first + f64::from(n) * step).take_while(|seconds| *seconds <= to).collect()
    }

    /// A line through the values; where there is none, it is interrupted.
    pub(super) fn line(&self, values: &[Option<f64>], scale: &Scale) -> String {
        let mut path = String::new();
        for (place, value) in self.bends(values) {
            let Some(value) = value else { continue };
            let begins = place == 0 || values[place - 1].is_none();
            self.point(&mut path, begins, (place, values.len()), self.y(value, scale));
        }
        path
    }

    /// What is between two lines of the same length.
    pub(super) fn area(&self, below: &[f64], above: &[f64], scale: &Scale) -> String {
        let mut path = String::new();
        for (place, value) in self.bends(above) {
            self.point(&mut path, place == 0, (place, above.len()), self.y(value, scale));
        }
        for (place, value) in self.bends(below).collect::<Vec<_>>().into_iter().rev() {
            self.point(&mut path, false, (place, below.len()), self.y(value, scale));
        }
        path.push('Z');
        path
    }

    /// Values with their places, but for those between two that are the same.
    fn bends<T: Copy + PartialEq>(&self, values: &[T]) -> impl Iterator<Item = (usize, T)> {
        let flat = |place: usize| {
            let next = values.get(place + 1);
            place > 0 && values[place - 1] == values[place] && next == Some(&values[place])
        };
        (0..values.len()).filter(move |place| !flat(*place)).map(|place| (place, values[place]))
    }

    fn point(&self, path: &mut String, begins: bool, place: (usize, usize), y: f64) {
        let (pen, x) = (if begins { 'M' } else { 'L' }, self.column(place.0, place.1));
        // Writing to a String cannot fail.
        let _ = write!(path, "{pen}{x:.1} {y:.1}");
    }

    fn column(&self, index: usize, columns: usize) -> f64 {
        let part = index as f64 / columns.saturating_sub(1).max(1) as f64;
        self.left + (self.right - self.left) * part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PANEL: Panel =
        Panel { left: 0.0, right: 100.0, top: 0.0, height: 50.0, time: (0.0, 60.0) };

    #[test]
    fn a_line_is_interrupted_where_there_is_no_value() {
        let scale = Scale::shares(0.0, 1.0);
        let values = [Some(0.0), Some(1.0), None, Some(0.5), Some(9.0)];
        assert_eq!(PANEL.line(&values, &scale), "M0.0 50.0L25.0 0.0M75.0 25.0L100.0 0.0");
    }

    #[test]
    fn what_is_level_is_drawn_by_its_ends() {
        let scale = Scale::shares(0.0, 1.0);
        let values = [0.5, 0.5, 0.5, 1.0, 1.0].map(Some);
        let path = PANEL.line(&values, &scale);
        assert_eq!(path, "M0.0 25.0L50.0 25.0L75.0 0.0L100.0 0.0");
    }

    #[test]
    fn an_area_goes_up_and_comes_back_below() {
        let scale = Scale::shares(0.0, 1.0);
        let (below, above) = ([0.0, 0.5], [0.5, 1.0]);
        let path = PANEL.area(&below, &above, &scale);
        assert_eq!(path, "M0.0 25.0L100.0 0.0L100.0 25.0L0.0 50.0Z");
    }

    #[test]
    fn ticks_are_few_round_and_within() {
        let labels = |scale: Scale| scale.ticks().into_iter().map(|(_, l)| l).collect::<Vec<_>>();
        assert_eq!(labels(Scale::logarithmic(4.0, 60.0)), ["5 ms", "10 ms", "20 ms", "50 ms"]);
        assert_eq!(
            labels(Scale::logarithmic(0.5, 20_000.0)),
            ["1 ms", "10 ms", "100 ms", "1 s", "10 s"]
        );
        assert_eq!(labels(Scale::logarithmic(18.0, 32.0)), ["20 ms", "30 ms"]);
        assert_eq!(labels(Scale::shares(0.9, 1.0)), ["90 %", "95 %", "100 %"]);
        assert_eq!(PANEL.time_ticks(), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
    }
}
