//! llama.cpp as a peer to compare with: built once from the source archive of a Python package, under target/.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::python_env::succeed;

/// The package whose source archive holds llama.cpp's source.
const PACKAGE: &str = "llama-cpp-python";
const VERSION: &str = "0.3.36";
const SHA256: &str = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";

/// The programs that are built.
const TARGETS: [&str; 5] =
    ["llama-completion", "llama-perplexity", "llama-bench", "llama-quantize", "llama-imatrix"];

/// The environment variable that names a folder in which the programs are already.
pub(crate) const VARIABLE: &str = "LUTHIER_LLAMA_CPP";

/// Built programs of llama.cpp.
pub(crate) struct LlamaCpp {
    programs: PathBuf,
}

/// Builds them where they are missing. Needs a C++ compiler; cmake comes from the registry of Python packages.
pub(crate) fn build() -> Result<LlamaCpp> {
    #[allow(clippy::disallowed_methods)] // Only xtask and the program itself read the environment.
    if let Some(programs) = std::env::var_os(VARIABLE) {
        return Ok(LlamaCpp { programs: programs.into() });
    }
    let folder = crate::root().join("target/llama.cpp");
    let build = folder.join("build");
    let programs = build.join("bin");
    if TARGETS.iter().all(|target| programs.join(target).exists()) {
        return Ok(LlamaCpp { programs });
    }
    let source = unpacked(&folder)?;
    let cmake = cmake(&folder)?;
    let options = [
        "GGML_NATIVE=ON",
        "LLAMA_CURL=OFF",
        "LLAMA_OPENSSL=OFF",
        "LLAMA_BUILD_UI=OFF",
        "LLAMA_BUILD_TESTS=OFF",
    ];
    let mut configure = Command::new(&cmake);
    configure.arg("-S").arg(&source).arg("-B").arg(&build).arg("-DCMAKE_BUILD_TYPE=Release");
    succeed(configure.args(options.map(|option| format!("-D{option}"))))?;
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    let mut make = Command::new(&cmake);
    make.arg("--build").arg(&build).args(["--parallel", &n_threads, "--target"]).args(TARGETS);
    succeed(&mut make)?;
    Ok(LlamaCpp { programs })
}

impl LlamaCpp {
    /// The folder that they lie in.
    pub(crate) fn programs(&self) -> &Path {
        &self.programs
    }

    /// The greedy continuation of a prompt, taken literally, up to the first end token.
    pub(crate) fn complete(&self, model: &Path, prompt: &str, n_tokens: usize) -> Result<String> {
        let mut command = Command::new(self.programs.join("llama-completion"));
        command.arg("--model").arg(model).args(["--prompt", prompt, "--predict", &n_tokens.to_string()]);
        command.args(["--temp", "0", "--threads", "2", "--no-display-prompt", "--no-conversation"]);
        // Its --ignore-eos forbids the end tokens, so that the text up to the first one is all that can be compared.
        command.args(["--no-escape", "--no-warmup", "--simple-io"]);
        let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Measures importance weights on the first windows of a text, in the form of today or the older one.
    pub(crate) fn importance(&self, model: &Path, text: &Path, form: &str, out: &Path) -> Result<()> {
        let mut command = Command::new(self.programs.join("llama-imatrix"));
        command.arg("--model").arg(model).arg("--file").arg(text).arg("--output-file").arg(out);
        command.args(["--output-format", form, "--ctx-size", "256", "--chunks", "4", "--threads", "2"]);
        let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// What llama-perplexity says of a text at window 512.
    pub(crate) fn perplexity(&self, model: &Path, text: &Path, threads: usize) -> Result<f64> {
        let mut command = Command::new(self.programs.join("llama-perplexity"));
        command.arg("--model").arg(model).arg("--file").arg(text);
        command.args(["--ctx-size", "512", "--threads", &threads.to_string()]);
        let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        ensure!(output.status.success(), "{command:?}: {said}");
        let after = said.split("Final estimate: PPL = ").nth(1);
        let number =
            after.and_then(|text| text.split_whitespace().next()).and_then(|number| number.parse().ok());
        number.with_context(|| format!("no final estimate in what llama-perplexity said:\n{said}"))
    }
}

/// The source of llama.cpp, unpacked from the archive.
fn unpacked(folder: &Path) -> Result<PathBuf> {
    let archive_name = format!("{}-{VERSION}", PACKAGE.replace('-', "_"));
    let source = folder.join(&archive_name).join("vendor/llama.cpp");
    if source.join("CMakeLists.txt").exists() {
        return Ok(source);
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let archive = folder.join(format!("{archive_name}.tar.gz"));
    if !archive.exists() {
        // pip would start to build the package to learn its name, so that the archive is taken from the index itself.
        let script = crate::root().join("tools/parity/source_archive.py");
        succeed(Command::new("python3").arg(script).args([PACKAGE, VERSION]).arg(&archive))?;
    }
    let came = crate::fetch_models::sha256(&archive)?;
    if came != SHA256 {
        bail!("{}: SHA-256 is {came}, wanted {SHA256}; remove the file and run again", archive.display());
    }
    succeed(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(folder))?;
    ensure!(source.join("CMakeLists.txt").exists(), "{} holds no llama.cpp", archive.display());
    Ok(source)
}

/// cmake of this machine, or one installed from the registry of Python packages.
fn cmake(folder: &Path) -> Result<PathBuf> {
    if Command::new("cmake").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Ok("cmake".into());
    }
    let environment = folder.join("cmake");
    let cmake = environment.join("bin/cmake");
    if !cmake.exists() {
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
        let pip = ["-m", "pip", "install", "--quiet", "cmake"];
        succeed(Command::new(environment.join("bin/python")).args(pip))?;
    }
    Ok(cmake)
}
