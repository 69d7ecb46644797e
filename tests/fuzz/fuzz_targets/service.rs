//! The control service's lines, both ways: read or refused, and what was read fits and reads back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peervpn::join::service::{Answer, MAX_ANSWER, MAX_REQUEST, Request};

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = Request::parse(data) {
        let line = request.encode();
        // a proof of any text is read, and found wrong later
        assert!(line.len() > MAX_REQUEST || Request::parse(&line) == Ok(request));
    }
    if let Ok(answer) = Answer::parse(data) {
        let line = answer.encode();
        assert!(line.len() <= MAX_ANSWER, "{}", line.len());
        assert_eq!(Answer::parse(&line), Ok(answer));
    }
});
