//! What macOS's kernel and programs say: routing messages, captured packets, pfctl's and scutil's words, utun's name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peervpn_platform::datagram;
use peervpn_platform::macos_formats::capture::{LinkType, frames};
use peervpn_platform::macos_formats::{dns, names, pf, route};

fuzz_target!(|data: &[u8]| {
    // a rt_msghdr has 92 bytes, a bpf_hdr 18
    assert!(route::entries(data).len() * 92 <= data.len());
    let _ = route::tell_of_change(data);
    let mut room = data.len();
    for frame in frames(data) {
        room = room.checked_sub(18 + frame.len()).expect("no more comes out than went in");
        for link in [LinkType::Null, LinkType::Ethernet, LinkType::Raw] {
            if let Some((family, packet)) = link.packet(frame)
                && let Some((_, payload)) = datagram::parse(family, packet, 3)
            {
                assert!(packet.get(payload).is_some());
            }
        }
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lines = text.lines().count();
    assert!(pf::references(text).len() <= lines && dns::servers(text).len() <= lines);
    let _ = (pf::hook(text, "anchor"), pf::enabled(text));
    assert!(names::utun(text).is_none_or(|name| name.len() < 16));
});
