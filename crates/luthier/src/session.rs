//! What every command is told besides its own options, and how it answers.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

/// Options that all commands share.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Session {
    /// Worker threads; all cores by default
    #[arg(long, global = true, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Print exactly one JSON object on standard output; everything else goes to standard error
    #[arg(long, global = true)]
    pub json: bool,
    /// Report progress as JSON lines on standard error
    #[arg(long, global = true)]
    pub log_json: bool,
}

/// What a command found or did: for machines, and in words.
#[derive(Clone, Debug)]
pub struct Report {
    /// The object that `--json` prints; units stand in its keys.
    pub json: Value,
    /// What a person reads instead.
    pub text: String,
}

/// A report of something that is not as it should be: printed like any other, with exit code 1.
#[derive(Debug)]
pub struct Faulty(pub Report);

impl std::fmt::Display for Faulty {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(&self.0.text)
    }
}

impl std::error::Error for Faulty {}

impl Report {
    /// The outcome of a verb that judges: an error with the same words where the judgement is no.
    pub fn judged(self, is_good: bool) -> anyhow::Result<Report> {
        if is_good { Ok(self) } else { Err(Faulty(self).into()) }
    }
}

impl Session {
    /// Threads to use: as asked for, else all cores that this process may use.
    pub fn thread_count(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
    }

    /// Prints a report the way the user asked for. A closed pipe is no error, a full device is one.
    pub fn print(&self, report: &Report) -> anyhow::Result<()> {
        use std::io::Write;
        let mut out = std::io::stdout().lock();
        let text = if self.json { report.json.to_string() } else { report.text.clone() };
        let written = out
            .write_all(text.trim_end_matches('\n').as_bytes())
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush());
        match written {
            Err(problem) if problem.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(anyhow::Error::new(problem).context("writing to standard output"))
            }
            _ => Ok(()),
        }
    }

    /// One line for the person who waits, on standard error.
    pub fn note(&self, line: &str) {
        write_note(line, self.log_json);
    }

    /// Makes this the session that [`remark`] speaks to.
    pub fn announce(&self) {
        REMARKS_AS_JSON.store(self.log_json, Ordering::Relaxed);
    }
}

static REMARKS_AS_JSON: AtomicBool = AtomicBool::new(false);

/// [`Session::note`] where no session is at hand.
pub fn remark(line: &str) {
    write_note(line, REMARKS_AS_JSON.load(Ordering::Relaxed));
}

#[allow(clippy::print_stderr)]
fn write_note(line: &str, as_json: bool) {
    if as_json {
        eprintln!("{}", serde_json::json!({ "note": line }));
    } else {
        eprintln!("{line}");
    }
}

fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(n) if (1..=1024).contains(&n) => Ok(n),
        _ => Err("wanted a whole number from 1 to 1024".to_string()),
    }
}
