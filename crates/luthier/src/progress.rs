//! How long work is shown: a bar on a terminal, plain lines elsewhere, JSON lines with `--log-json`.

use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use luthier_train::progress::{Progress, Start, StepDone};
use serde_json::json;

use crate::session::Session;

/// Least time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A training run as a person sees it, on standard error.
pub struct TrainingDisplay {
    session: Session,
    label: String,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl TrainingDisplay {
    /// `label` stands before each line.
    pub fn new(session: &Session, label: &str) -> TrainingDisplay {
        TrainingDisplay { session: *session, label: label.to_string(), bar: None, last_line: None }
    }

    fn say(&self, line: &str, json: serde_json::Value) {
        match &self.bar {
            _ if self.session.log_json => print_line(&json.to_string()),
            Some(bar) => bar.println(format!("{}{line}", self.label)),
            None => print_line(&format!("{}{line}", self.label)),
        }
    }
}

impl Progress for TrainingDisplay {
    fn started(&mut self, start: &Start) {
        if std::io::stderr().is_terminal() && !self.session.log_json {
            let style = ProgressStyle::with_template("{prefix}{wide_bar} {pos}/{len} {msg}")
                .expect("the template is well-formed");
            let bar = ProgressBar::new(start.total_steps).with_style(style).with_prefix(self.label.clone());
            bar.set_position(start.resumed_at_step);
            self.bar = Some(bar);
        }
        let line = format!(
            "{} parameters, {} trained; {} text tokens in {} documents; {} steps{}",
            start.parameters,
            start.trained_parameters,
            start.text_tokens,
            start.text_documents,
            start.total_steps,
            if start.resumed_at_step > 0 {
                format!(", going on after step {}", start.resumed_at_step)
            } else {
                String::new()
            }
        );
        self.say(
            &line,
            json!({
                "event": "started", "parameters": start.parameters, "trained_parameters": start.trained_parameters,
                "text_tokens": start.text_tokens, "text_documents": start.text_documents,
                "validation_tokens": start.validation_tokens, "total_steps": start.total_steps,
                "resumed_at_step": start.resumed_at_step,
            }),
        );
        if let Some(plan) = &start.memory {
            self.say(&plan.text(), json!({"event": "memory", "plan": plan}));
        }
    }

    fn step_done(&mut self, step: &StepDone) {
        let numbers = format!(
            "loss {:.4} lr {:.2e} {:.0} tokens/s, {} left",
            step.loss_nats,
            step.lr,
            step.tokens_per_s,
            duration(step.eta_s)
        );
        if let Some(bar) = &self.bar {
            bar.set_position(step.step);
            bar.set_message(numbers);
            if step.step == step.total_steps {
                bar.finish_and_clear();
            }
            return;
        }
        let is_due =
            self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY) || step.step == step.total_steps;
        if is_due || self.session.log_json {
            self.last_line = Some(Instant::now());
            self.say(
                &format!("step {}/{} {numbers}", step.step, step.total_steps),
                json!({
                    "event": "step", "step": step.step, "total_steps": step.total_steps, "loss_nats": step.loss_nats,
                    "learning_rate": step.lr, "grad_norm": step.grad_norm, "tokens_per_s": step.tokens_per_s,
                    "eta_s": step.eta_s,
                }),
            );
        }
    }

    fn validated(&mut self, step: u64, loss_nats: f64) {
        self.say(
            &format!("step {step}: validation loss {loss_nats:.4} nats per token"),
            json!({ "event": "validated", "step": step, "validation_loss_nats": loss_nats }),
        );
    }

    fn saved(&mut self, step: u64, place: &Path) {
        self.say(
            &format!("step {step}: saved {}", place.display()),
            json!({ "event": "saved", "step": step, "place": place }),
        );
    }
}

/// A download as a person sees it, on standard error: a line per file, and one every ten seconds.
#[derive(Default)]
pub struct DownloadDisplay {
    file: String,
    last_line: Option<Instant>,
}

impl DownloadDisplay {
    /// Shows how far it has come.
    pub fn show(&mut self, progress: &luthier_checkpoint::hub::Progress) {
        let is_new = self.file != progress.file;
        let is_due = self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY);
        if !is_new && !is_due {
            return;
        }
        self.file = progress.file.to_string();
        self.last_line = Some(Instant::now());
        let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        let total = progress.total_bytes.map_or("unknown size".to_string(), megabytes);
        print_line(&format!("{}: {} of {total}", progress.file, megabytes(progress.done_bytes)));
    }
}

fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "unknown time".to_string();
    }
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s:02} s"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

#[allow(clippy::print_stderr)]
fn print_line(line: &str) {
    eprintln!("{line}");
}
