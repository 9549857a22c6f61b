//! Medians over the rounds, and ratios round by round.

use std::fmt::Write;

use super::{Row, System, Workload};

/// One line per measurement, while it runs.
pub(super) fn progress(workload: &Workload, row: &Row) -> String {
    let (rate, unit) = (rate(workload, row), if workload.bulk { "MB/s" } else { "req/s" });
    format!("{} round {} {:?}: {rate:.0} {unit}", row.workload, row.round + 1, row.system)
}

/// One table per workload.
pub(super) fn tables(workloads: &[&Workload], systems: &[System], rows: &[Row]) -> String {
    let mut text = String::from(
        "Medians over the rounds; latencies in microseconds; CPU seconds (user and system) per 10,000 \
         requests, or per GB;\nmemory is the peak of resident MiB. Ratios are medians of the rounds' \
         own ratios. Where the pair is not busy in a closed loop, load or application was the limit: \
         compare CPU, not speed.\n",
    );
    for workload in workloads {
        table(&mut text, workload, systems, rows).expect("invariant: a String takes everything");
    }
    text
}

fn table(
    text: &mut String,
    workload: &Workload,
    systems: &[System],
    rows: &[Row],
) -> std::fmt::Result {
    let unit = if workload.bulk { "MB/s" } else { "req/s" };
    writeln!(text, "\n### {}\n", workload.name)?;
    writeln!(
        text,
        "| system | {unit} | / direct | / envoy | p50 | p99 | p99.9 | CPU outbound | CPU inbound | \
         CPU pair / envoy | pair busy | memory outbound, inbound |"
    )?;
    writeln!(text, "|---|{}", "---:|".repeat(11))?;
    for &system in systems {
        let of = |system| {
            rows.iter().filter(move |row| row.workload == workload.name && row.system == system)
        };
        let over = |f: &dyn Fn(&Row) -> Option<f64>| median(of(system).filter_map(f).collect());
        let ratio = |to: System, f: &dyn Fn(&Row) -> Option<f64>| {
            let own = of(system).filter_map(|row| {
                let other = of(to).find(|other| other.round == row.round)?;
                Some(f(row)? / f(other)?).filter(|ratio| ratio.is_finite())
            });
            median(own.collect())
        };
        let speed = |row: &Row| Some(rate(workload, row));
        let cpu = |side: usize| move |row: &Row| Some(cost(workload, row)?[side]);
        let pair = |row: &Row| Some(cost(workload, row)?.iter().sum());
        let busy = |row: &Row| Some(row.cpu?.iter().sum::<f64>() / row.load.seconds * 100.0);
        let latency = |f: fn(&Row) -> u64| {
            if workload.bulk { None } else { over(&|row| Some(f(row) as f64)) }
        };
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} % | {}, {} |",
            format!("{system:?}").to_lowercase(),
            number(over(&speed), 0),
            number(ratio(System::Direct, &speed), 2),
            number(ratio(System::Envoy, &speed), 2),
            number(latency(|row| row.load.p50), 0),
            number(latency(|row| row.load.p99), 0),
            number(latency(|row| row.load.p999), 0),
            number(over(&cpu(0)), 3),
            number(over(&cpu(1)), 3),
            number(ratio(System::Envoy, &pair), 2),
            number(over(&busy), 0),
            number(over(&|row| Some(row.memory?[0])), 1),
            number(over(&|row| Some(row.memory?[1])), 1),
        )?;
    }
    Ok(())
}

/// Requests, or megabytes, per second.
fn rate(workload: &Workload, row: &Row) -> f64 {
    let done = if workload.bulk { row.load.bytes as f64 / 1e6 } else { row.load.requests as f64 };
    done / row.load.seconds
}

/// CPU seconds of each sidecar per 10,000 requests, or per GB.
fn cost(workload: &Workload, row: &Row) -> Option<[f64; 2]> {
    let load = &row.load;
    let units = if workload.bulk { load.bytes as f64 / 1e9 } else { load.requests as f64 / 1e4 };
    row.cpu.filter(|_| units > 0.0).map(|cpu| cpu.map(|seconds| seconds / units))
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Report;

    const HTTP1: Workload = Workload { name: "http1", load: "", port: 0, bulk: false };

    fn row(system: System, round: u8, requests: u64, cpu: f64) -> Row {
        let load = Report {
            requests,
            errors: 0,
            first_error: None,
            bytes: 0,
            seconds: 2.0,
            p50: 100,
            p99: 200,
            p999: 300,
        };
        let cpu = (system != System::Direct).then_some([cpu, cpu / 2.0]);
        Row { workload: "http1", system, round, load, cpu, memory: cpu.map(|_| [8.0, 9.0]) }
    }

    #[test]
    fn ratios_compare_systems_within_each_round() {
        let rows = [
            row(System::Direct, 0, 80_000, 0.0),
            row(System::Remora, 0, 40_000, 1.0),
            row(System::Envoy, 0, 20_000, 1.0),
            row(System::Direct, 1, 8_000, 0.0),
            row(System::Remora, 1, 4_000, 1.0),
            row(System::Envoy, 1, 2_000, 1.0),
        ];
        let systems = [System::Direct, System::Remora, System::Envoy];
        let text = tables(&[&HTTP1], &systems, &rows);
        let line = text.lines().find(|line| line.starts_with("| remora")).unwrap();
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        assert_eq!(cells[2..8], ["11000", "0.50", "2.00", "100", "200", "300"], "{line}");
        assert_eq!(cells[10..13], ["0.50", "75 %", "8.0, 9.0"], "{line}");
    }

    #[test]
    fn a_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(vec![5.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(Vec::new()), None);
    }
}
