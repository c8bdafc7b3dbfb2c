//! The operator's command `ublk-admin`.

#![forbid(unsafe_code)]

use clap::Parser;
use std::process::ExitCode;
use tools::admin::{Arguments, ClientError, run};

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ublk-admin: {error}");
            ExitCode::from(if matches!(error, ClientError::Unreachable { .. }) { 3 } else { 1 })
        }
    }
}
