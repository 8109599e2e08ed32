//! The command line, on the real binary: what is refused and how, key files, the configuration file, signals, the state line.

mod check;
mod config_file;
mod keygen;
mod keys;
mod process;
mod refusals;
mod reload;
mod running;
mod support;
