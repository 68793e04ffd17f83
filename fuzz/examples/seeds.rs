//! Writes the seeds into the corpus: `cargo run --example seeds`, in the folder `fuzz`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    for target in &unisockets_fuzz::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (name, bytes) in unisockets_fuzz::seeds::seeds(target.name) {
            std::fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}
