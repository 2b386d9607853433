//! The program: `luthier VERB MODEL [--flags] OUT`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    luthier::program::main()
}
