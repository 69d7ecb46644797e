//! `doctor`: what it finds on a good machine and on bad ones, and that it changes nothing.

use crate::harness::*;

#[test]
fn a_good_machine() {
    let Some(namespace) = Namespace::with_default_route("doctor") else { return };
    let place = Place::new("doctor").with_key();
    golden_unchanged("doctor", &namespace, &place, &mut namespace.peervpn(&place, &["doctor"]));
    golden_unchanged("doctor-json", &namespace, &place, &mut namespace.peervpn(&place, &["--diagnostics", "--json"]));
}

#[test]
fn no_way_to_the_internet_a_taken_name_and_a_damaged_key() {
    let Some(namespace) = Namespace::new("doctor-bad") else { return };
    let place = Place::new("doctor-bad").with_key();
    std::fs::write(place.state().join("identity.key"), "not a key\n").unwrap();
    namespace.ip("link add peervpn0 type veth peer name far0");
    golden_unchanged("doctor-bad", &namespace, &place, &mut namespace.peervpn(&place, &["doctor"]));
    assert_eq!(finish(&mut namespace.peervpn(&place, &["doctor"])).status.code(), Some(1));
}

#[test]
fn neighbours_and_a_crashed_node() {
    let Some(namespace) = Namespace::with_default_route("doctor-neighbours") else { return };
    if std::process::Command::new("nft").arg("-v").output().is_err() {
        println!("SKIP: nft");
        return;
    }
    let place = Place::new("doctor-neighbours").with_key();
    for name in ["ufw", "firewalld"] {
        let file = format!("{}/tests/fixtures/firewall/{name}.nft", env!("CARGO_MANIFEST_DIR"));
        done(&mut namespace.command("nft", &["-f", &file]));
    }
    done(&mut namespace.command(
        "nft",
        &["add chain inet firewalld filter_INPUT { type filter hook input priority 10; policy drop; }"],
    ));
    std::fs::create_dir_all(place.state().join("journal")).unwrap();
    let journal = place.state().join("journal/peervpn0.journal");
    std::fs::write(&journal, "torn").unwrap();
    let before = namespace.snapshot();
    golden("doctor-neighbours", &place, &finish(&mut namespace.peervpn(&place, &["doctor"])));
    assert_eq!(before, namespace.snapshot());
    assert_eq!(std::fs::read_to_string(journal).unwrap(), "torn");
}
