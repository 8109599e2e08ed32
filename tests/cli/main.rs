//! The command line, on the real binary: what is refused and how, key files, the configuration file, signals, the state line.

mod config_file;
mod keygen;
mod process;
mod refusals;
mod running;
mod support;
