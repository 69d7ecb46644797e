//! Connect strings and endpoints: parsed or refused, and what was parsed reads back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use peervpn::error::Hint;
use peervpn::join::connect::{ConnectString, Endpoint};

fuzz_target!(|text: &str| {
    match text.parse::<ConnectString>() {
        Ok(parsed) => assert_eq!(parsed.to_string().parse(), Ok(parsed)),
        Err(error) => assert!(error.hint().is_some() && error.to_string().len() < 2000),
    }
    match text.parse::<Endpoint>() {
        Ok(parsed) => assert_eq!(parsed.to_string().parse(), Ok(parsed)),
        Err(error) => assert!(error.hint().is_some() && error.to_string().len() < 2000),
    }
});
