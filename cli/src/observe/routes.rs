//! `remora routes [SVC]`: the routes of Services, and what takes them.

use std::process::ExitCode;

pub use super::endpoints::Args;
use super::{
    endpoints,
    merge::Service,
    table::{Align, Look, Table, known, micros, percent, rate},
};

/// Runs it: status 0 where there is something to show.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    endpoints::show(args, table)
}

/// One row for each route, in the order in which they are tried, and one for a Service without.
fn table(services: &[Service]) -> Table {
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("ROUTE", Align::Left),
        ("CALLERS", Align::Right),
        ("RPS", Align::Right),
        ("SUCCESS", Align::Right),
        ("P50", Align::Right),
        ("P99", Align::Right),
    ]);
    for service in services {
        let whole = ("no routes", service.callers, &service.traffic);
        let routes = service.routes.iter().map(|r| (r.name.as_str(), r.callers, &r.traffic));
        let rows = routes.chain(service.routes.is_empty().then_some(whole));
        for (name, callers, traffic) in rows {
            let row = [
                service.id(),
                name.to_owned(),
                callers.to_string(),
                known(traffic.requests_per_second, rate),
                known(traffic.success_rate, percent),
                known(traffic.p50_us, micros),
                known(traffic.p99_us, micros),
            ];
            table.row(if traffic.is_poor() { Look::Bad } else { Look::Plain }, row);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{
        answers,
        merge::{self, Span},
        table::Colours,
        testing::{golden, recorded},
    };

    #[test]
    fn routes_are_shown_in_the_order_in_which_they_are_tried() {
        let (caller, other): (answers::Endpoints, answers::Endpoints) =
            (recorded("endpoints-frontend.json"), recorded("endpoints-cart.json"));
        let services = merge::services([(&caller, None), (&other, None)], Span::Minute);
        golden("routes.txt", &table(&services).lines(Colours(false)));
    }
}
