//! `remora endpoints [SVC]`: the endpoints of Services as their callers see them.

use std::process::ExitCode;

use serde::Serialize;

use super::{
    Asked, EXIT_STATUS, answers, colours, drive,
    error::Error,
    merge::{self, Service, Span},
    mesh::{Answers, Asker, Mesh, Silent, Unanswered, each},
    place::Place,
    print, print_json,
    table::{Align, Look, NOTHING, Of, Table, known, micros, millis, percent, rate},
    wish::Wish,
};

/// Services named where the one that was asked for is not there.
const SUGGESTED: usize = 10;

/// `remora endpoints` and `remora routes`
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Args {
    /// Only this Service: orders, shop/orders, orders.shop:80
    #[arg(value_name = "SVC")]
    service: Option<Wish>,
    /// The time that rates, success and latency are of
    #[arg(long, value_enum, default_value = "1m")]
    window: Span,
    /// Print {mesh, proxies, unreachable, left_out, services}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// Runs it: status 0 where there is something to show.
#[must_use]
pub fn run(args: &Args) -> ExitCode {
    show(args, table)
}

/// Shows Services, as `table` makes rows of them.
pub(super) fn show(args: &Args, table: fn(&[Service]) -> Table) -> ExitCode {
    drive(&args.place, async |mesh| {
        let seen = look(mesh, &args.place, args.service.as_ref(), args.window).await?;
        let asked = Asked::of(mesh, &seen.proxies, &seen.silent);
        if args.json {
            print_json(&Shown { asked, services: &seen.services })?;
        } else {
            print(|mut out| table(&seen.services).write(&mut out, colours()))?;
            asked.say();
        }
        Ok(ExitCode::SUCCESS)
    })
}

#[derive(Serialize)]
pub(super) struct Shown<'a> {
    #[serde(flatten)]
    pub(super) asked: Asked<'a>,
    pub(super) services: &'a [Service],
}

/// What all proxies together see.
struct Seen {
    proxies: super::Proxies,
    silent: Vec<Silent>,
    services: Vec<Service>,
}

/// Asks all proxies once.
///
/// # Errors
/// Where nobody answers, or nobody knows the Service.
async fn look(mesh: &Mesh, place: &Place, wish: Option<&Wish>, span: Span) -> Result<Seen, Error> {
    let proxies = mesh.proxies(place).await?;
    let mut askers = mesh.askers(&proxies.members);
    let Answers { given, silent } = each(&mut askers, ask).await;
    if given.is_empty() {
        return Err(Error::Silence { silent });
    }
    let given = given.iter().map(|(_, (endpoints, routes))| (endpoints, routes.as_ref()));
    let all = merge::services(given, span);
    let services = chosen(all, wish)?;
    Ok(Seen { proxies, silent, services })
}

pub(super) type Answer = (answers::Endpoints, Option<answers::Destinations>);

/// Both answers of one proxy; without the second there are no names of routes.
pub(super) async fn ask(asker: &mut Asker<'_>) -> Result<Answer, Unanswered> {
    let endpoints: answers::Endpoints = asker.json("/endpoints").await?;
    let has_routes = endpoints.services.iter().any(|service| !service.routes.is_empty());
    let names = if has_routes { None } else { asker.json("/services").await.ok() };
    Ok((endpoints, names))
}

/// The Services that are meant.
///
/// # Errors
/// Where one is meant and nobody knows it.
fn chosen(all: Vec<Service>, wish: Option<&Wish>) -> Result<Vec<Service>, Error> {
    let Some(wish) = wish else { return Ok(all) };
    let means = |service: &&Service| wish.means(&service.namespace, &service.name, service.port);
    let chosen: Vec<Service> = all.iter().filter(means).cloned().collect();
    if chosen.is_empty() {
        let mut known: Vec<String> = all.iter().take(SUGGESTED).map(Service::id).collect();
        if all.len() > SUGGESTED {
            known.push("…".to_owned());
        }
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(Error::Unknown(format!(
            "no proxy that was asked knows this Service: an application has to call it first; known \
             are {known}"
        )));
    }
    Ok(chosen)
}

/// One row for each endpoint, and one for a Service that has none.
pub(super) fn table(services: &[Service]) -> Table {
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("ENDPOINT", Align::Left),
        ("POD", Align::Left),
        ("ZONE", Align::Left),
        ("STATE", Align::Left),
        ("SEEN BY", Align::Left),
        ("RPS", Align::Right),
        ("SUCCESS", Align::Right),
        ("P50", Align::Right),
        ("P99", Align::Right),
        ("IN FLIGHT", Align::Right),
        ("WHY", Align::Left),
    ]);
    for service in services {
        for endpoint in &service.endpoints {
            let traffic = &endpoint.traffic;
            let why = match endpoint.next_probe_ms {
                Some(next) if !endpoint.is_ready() => {
                    format!("{}, next probe in {}", endpoint.reason, millis(next))
                }
                _ => endpoint.reason.clone(),
            };
            let look = match (endpoint.is_ready(), traffic.is_poor()) {
                (false, _) => Look::Bad,
                (true, true) => Look::Doubtful,
                (true, false) => Look::Plain,
            };
            let row = [
                service.id(),
                endpoint.address.clone(),
                endpoint.pod.clone(),
                endpoint.zone.clone(),
                endpoint.state.clone(),
                Of(endpoint.seen_by, endpoint.known_to).to_string(),
                known(traffic.requests_per_second, rate),
                known(traffic.success_rate, percent),
                known(traffic.p50_us, micros),
                known(traffic.p99_us, micros),
                endpoint.in_flight.to_string(),
                why,
            ];
            table.row(look, row);
        }
        if service.endpoints.is_empty() {
            let none = ["no endpoints", "", "", NOTHING, "", "", "", "", "", "", ""];
            let cells = std::iter::once(service.id()).chain(none.map(str::to_owned));
            table.row(Look::Bad, cells);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{
        table::Colours,
        testing::{golden, recorded},
    };

    fn shop() -> Vec<Service> {
        let (caller, other): (answers::Endpoints, answers::Endpoints) =
            (recorded("endpoints-frontend.json"), recorded("endpoints-cart.json"));
        merge::services([(&caller, None), (&other, None)], Span::Minute)
    }

    #[test]
    fn people_see_state_traffic_and_how_many_agree() {
        let lines = table(&shop()).lines(Colours(false));
        golden("endpoints.txt", &lines);
    }

    #[test]
    fn what_is_ejected_is_red_and_what_fails_and_is_not_is_yellow() {
        let mut shop = shop();
        shop[1].endpoints[0].traffic.success_rate = Some(0.5);
        let lines = table(&shop).lines(Colours(true));
        assert!(lines[2].starts_with("\x1b[33mshop/orders:80  10.0.0.1"), "{}", lines[2]);
        assert!(lines[3].starts_with("\x1b[31mshop/orders:80  10.0.0.2"), "{}", lines[3]);
        assert!(lines[4].starts_with("shop/stock:80"), "{}", lines[4]);
    }

    #[test]
    fn a_service_nobody_knows_is_told_with_those_that_are_known() {
        let wish: Wish = "nobody".parse().unwrap();
        let error = chosen(shop(), Some(&wish)).unwrap_err().to_string();
        assert!(
            error.contains("known are shop/empty:80, shop/orders:80, shop/stock:80"),
            "{error}"
        );
        let wish: Wish = "orders.shop".parse().unwrap();
        assert_eq!(chosen(shop(), Some(&wish)).unwrap().len(), 1);
    }

    #[test]
    fn programs_get_plain_numbers_and_who_did_not_answer() {
        let services = shop();
        let asked = Asked { mesh: "here".to_owned(), proxies: 2, unreachable: &[], left_out: 0 };
        let json = serde_json::to_value(Shown { asked, services: &services }).unwrap();
        assert_eq!(json["mesh"], "here");
        let orders = &json["services"][1];
        assert_eq!((&orders["name"], &orders["port"]), (&"orders".into(), &80.into()));
        let open = &orders["endpoints"][1];
        assert_eq!((&open["state"], &open["seen_by"]), (&"open".into(), &1.into()));
        assert!(orders["requests_per_second"].as_f64().unwrap() > 0.0);
    }
}
