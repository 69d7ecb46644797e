//! What the observations of a discovery amount to.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use super::{Behaviour, Change, Chosen, Contact, Discovery, Measured, Path};

impl Discovery {
    /// The result.
    pub fn measured(&self) -> Measured {
        let answered: Vec<_> = self.servers.iter().filter(|s| matches!(s.contact, Contact::Answered(_))).collect();
        let silent = self.servers.iter().filter(|s| matches!(s.contact, Contact::Silent | Contact::Waiting));
        let silent = silent.map(|server| server.address.ip());
        // the chosen server's view if there is one, for which alone the paths are compared
        let reference = self.chosen.map(|chosen| chosen.first).or(answered.first().map(|server| server.address));
        let local_to = reference.or(self.servers.first().map(|server| server.address));
        let mut measured = Measured {
            udp: self.servers.iter().any(|s| matches!(s.contact, Contact::Answered(_) | Contact::Refused)),
            silent: silent.collect::<HashSet<_>>().len(),
            server: reference,
            local: local_to.and_then(|server| self.local(Path::Asked, server)),
            reflexive: reference.and_then(|server| self.observed.get(&(Path::Asked, server)).copied()),
            round_trip: self.round_trip,
            ..Measured::default()
        };
        if !measured.udp {
            return measured;
        }
        match self.chosen {
            Some(chosen) => {
                self.judge_mapping(chosen, &mut measured);
                measured.filtering = self.judge_filtering(chosen, &mut measured.why);
                measured.hairpin = self.judge_hairpin();
            }
            None => {
                self.compare_servers(&mut measured);
                measured.why.push("no server that answered can test the filtering behaviour (it needs OTHER-ADDRESS)");
            }
        }
        if let Some(earlier) = &self.earlier {
            fill_in(&mut measured, earlier);
        }
        measured
    }

    /// The source of packets from a path to a server.
    fn local(&self, path: Path, server: SocketAddr) -> Option<SocketAddr> {
        let ip = self.servers.iter().find(|known| known.address == server)?.local;
        Some(SocketAddr::new(ip, self.ports[path.index()]))
    }

    /// Some path's reflexive address isn't its own. Only meaningful once the server is chosen.
    pub(super) fn is_natted(&self) -> bool {
        let Some(chosen) = self.chosen else { return false };
        [Path::Asked, Path::Second].into_iter().any(|path| {
            let seen = self.observed.get(&(path, chosen.first)).copied();
            seen.is_some() && seen != self.local(path, chosen.first)
        })
    }

    /// A changed answer didn't come where no filter could have stopped it.
    fn breaks_promise(&self, chosen: Chosen) -> bool {
        self.open_paths(chosen).into_iter().any(|(_, change)| !self.honoured.contains(&change))
    }

    /// RFC 5780 §4.3 on one path; `None` without all answers.
    fn mapping_of(&self, path: Path, chosen: Chosen) -> Behaviour {
        let seen = |server| self.observed.get(&(path, server));
        let [first, other_address, other, other_port] = chosen.all().map(seen);
        match (first, other_address, other, other_port) {
            (Some(first), Some(address), Some(both), port) => {
                let by_port = address != both || port.is_some_and(|port| port != first);
                match (first == address, by_port) {
                    (true, false) => Behaviour::EndpointIndependent,
                    (false, false) => Behaviour::AddressDependent,
                    (_, true) => Behaviour::AddressAndPortDependent,
                }
            }
            _ => Behaviour::Unknown,
        }
    }

    fn judge_mapping(&self, chosen: Chosen, measured: &mut Measured) {
        use Behaviour::{AddressAndPortDependent, EndpointIndependent, Unknown};
        let asked = self.mapping_of(Path::Asked, chosen);
        let second = self.mapping_of(Path::Second, chosen);
        let dependent = |behaviour| !matches!(behaviour, EndpointIndependent | Unknown);
        measured.mapping = match (asked, second) {
            (a, b) if a == b => a,
            (EndpointIndependent, _) | (_, EndpointIndependent) => EndpointIndependent,
            (Unknown, _) | (_, Unknown) => Unknown,
            _ => AddressAndPortDependent,
        };
        measured.port_taken = dependent(asked) && second == EndpointIndependent;
        measured.maps_by_destination = dependent(measured.mapping);
        if measured.mapping == EndpointIndependent && !measured.port_taken && self.servers_differ() {
            measured.mapping = Unknown;
            measured.why.push("one server alone saw another reflexive address than the rest");
        } else if measured.mapping == Unknown {
            measured.why.push("not every answer of the mapping test arrived");
        }
    }

    /// Without a server that can be asked on two addresses: compare several.
    fn compare_servers(&self, measured: &mut Measured) {
        let addresses: HashSet<IpAddr> = self.answered_on_asked().map(|(server, _)| server.ip()).collect();
        measured.maps_by_destination = self.servers_differ();
        let same_address_differs = self.answered_on_asked().any(|(server, seen)| {
            self.answered_on_asked().any(|(other, other_seen)| other.ip() == server.ip() && other_seen != seen)
        });
        measured.mapping = match (measured.maps_by_destination, addresses.len()) {
            (true, _) if same_address_differs => Behaviour::AddressAndPortDependent,
            (false, 2..) => Behaviour::EndpointIndependent,
            _ => Behaviour::Unknown,
        };
        if measured.maps_by_destination && measured.mapping == Behaviour::Unknown {
            measured
                .why
                .push("servers saw different reflexive addresses; none could tell whether the port matters, too");
        } else if measured.mapping == Behaviour::Unknown {
            measured.why.push("the mapping behaviour needs answers from two servers");
        }
    }

    fn answered_on_asked(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr)> + Clone + '_ {
        self.observed.iter().filter(|((path, _), _)| *path == Path::Asked).map(|((_, server), seen)| (*server, *seen))
    }

    fn servers_differ(&self) -> bool {
        self.answered_on_asked().map(|(_, seen)| seen).collect::<HashSet<_>>().len() > 1
    }

    /// RFC 5780 §4.4, believed only with its controls.
    fn judge_filtering(&self, chosen: Chosen, why: &mut Vec<&'static str>) -> Behaviour {
        if self.ignores_change {
            why.push("the server offers OTHER-ADDRESS but doesn't answer from it");
            return Behaviour::Unknown;
        }
        if self.passed.contains(&Change::AddressAndPort) {
            return Behaviour::EndpointIndependent;
        }
        let [Some(before), Some(middle)] = self.controls else {
            why.push("the filtering test's control got no answer");
            return Behaviour::Unknown;
        };
        if before != middle {
            why.push("the mapping changed during the filtering test");
            return Behaviour::Unknown;
        }
        let heard = |server| Path::ALL.into_iter().any(|path| self.observed.contains_key(&(path, server)));
        if !heard(chosen.other) || !heard(chosen.other_port()) || self.breaks_promise(chosen) {
            why.push("the server's other address or port didn't answer where no filter was in the way");
            return Behaviour::Unknown;
        }
        match self.passed.contains(&Change::Port) {
            true => Behaviour::AddressDependent,
            false => Behaviour::AddressAndPortDependent,
        }
    }

    fn judge_hairpin(&self) -> Option<bool> {
        (self.hairpin_started && self.is_natted()).then_some(self.hairpinned)
    }
}

/// What one server couldn't tell and an earlier one could.
fn fill_in(measured: &mut Measured, earlier: &Measured) {
    if measured.mapping == Behaviour::Unknown && earlier.mapping != Behaviour::Unknown {
        measured.mapping = earlier.mapping;
        measured.maps_by_destination = earlier.maps_by_destination;
        measured.port_taken = earlier.port_taken;
    }
    if measured.filtering == Behaviour::Unknown {
        measured.filtering = earlier.filtering;
    }
    measured.hairpin = measured.hairpin.or(earlier.hairpin);
    if measured.mapping != Behaviour::Unknown && measured.filtering != Behaviour::Unknown {
        measured.why.clear();
    }
}
