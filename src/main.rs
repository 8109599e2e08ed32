//! The command `zhwkprox`.

use std::process::ExitCode;

use zhwkprox::cli::{self, Command, Stop, Typed};
use zhwkprox::config::{self, Check, Config, ConfigError};
use zhwkprox::exit::Failure;
use zhwkprox::{check, demo, doctor, rlimits, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    rlimits::refuse_huge_pages();
    let done = match cli::parse(std::env::args_os()) {
        Ok(Command::Keygen(typed)) => keygen(&typed),
        Ok(Command::Doctor) => doctor(),
        Ok(Command::Check(typed)) => try_login(&typed),
        Ok(Command::Demo(typed)) => show_demo(&typed),
        Ok(Command::Server(typed)) => role(&typed, Config::server),
        Ok(Command::InterServer(typed)) => role(&typed, Config::inter_server),
        Err(Stop::Shown(text)) => show(&text),
        Err(Stop::Wrong(what)) => Err(Failure::Usage(format!("{what} (see zhwkprox --help)"))),
    };
    done.map_or_else(|failure| failure.report(), |()| ExitCode::SUCCESS)
}

fn keygen(typed: &Typed) -> Result<(), Failure> {
    config::keygen(typed)?.map_err(|cause| Failure::other(cause.to_string()))
}

fn try_login(typed: &Typed) -> Result<(), Failure> {
    let check = Check::read(typed)?;
    let warnings: String = check.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    show(&warnings)?;
    show(&format!("{}\n", check::run(check)?))
}

fn show_demo(typed: &Typed) -> Result<(), Failure> {
    demo::run(config::demo(typed)?)
}

fn doctor() -> Result<(), Failure> {
    if doctor::report(&mut std::io::stdout().lock()) {
        return Ok(());
    }
    Err(Failure::other("the relay cannot run here: see the rows marked FAIL"))
}

fn role(typed: &Typed, read: fn(&Typed) -> Result<Config, ConfigError>) -> Result<(), Failure> {
    let config = read(typed)?;
    if typed.switch("check-config") {
        let warnings = config.warnings.iter().map(|warning| format!("warning: {warning}\n"));
        return show(&format!("{}configuration ok\n", warnings.collect::<String>()));
    }
    run::run(config)
}

fn show(text: &str) -> Result<(), Failure> {
    use std::io::Write as _;
    std::io::stdout().write_all(text.as_bytes()).map_err(|cause| Failure::other(format!("cannot write to standard output: {cause}")))
}
