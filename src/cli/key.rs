//! `key`: keys, secrets and pins.

use std::path::{Path, PathBuf};

use unisockets::{KeyError, create_key, data_folder, forget_pin, key_path, keys_with_pins, read_key};

use super::args::KeyCommand;
use super::exit::Failure;
use super::output::print;

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        Failure::failed(error)
    }
}

pub(super) fn run(command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::Show { key, network, json } => {
            let path = if Path::new(&key).is_file() { PathBuf::from(&key) } else { key_path(&network, &key) };
            let public = read_key(&path)?.public();
            if json {
                print(serde_json::json!({"key": public, "file": path}))?;
            } else {
                print(public)?;
            }
        }
        KeyCommand::New { network: true, .. } => print(new_secret())?,
        KeyCommand::New { file, .. } => {
            let path =
                file.ok_or_else(|| Failure::usage("key new needs a file, or --network for a network's secret"))?;
            print(create_key(&path)?.public())?;
        }
        KeyCommand::Forget { subject, name, key } => forget(&subject, name.as_deref(), key)?,
    }
    Ok(())
}

/// 128 random bits in letters that people can read to each other.
fn new_secret() -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the operating system has a random source");
    let bits = u128::from_be_bytes(bytes);
    let letter = |n: u32| char::from(LETTERS[(bits >> (5 * n)) as usize & 31]);
    (0..26).map(|n| if n % 5 == 4 { format!("{}-", letter(n)) } else { letter(n).to_string() }).collect()
}

fn forget(subject: &str, name: Option<&str>, key: Option<PathBuf>) -> Result<(), Failure> {
    let keys = match key {
        Some(key) => vec![key],
        None => keys_with_pins(&data_folder().join("keys"))?,
    };
    let is_wanted = |key: &Path| {
        let file = key.file_name().and_then(|file| file.to_str()).unwrap_or_default();
        name.is_none_or(|name| file.contains(&format!(".{name}.")))
    };
    let mut forgotten = 0;
    for key in keys.iter().filter(|key| is_wanted(key)) {
        forgotten += u32::from(forget_pin(key, subject)?);
    }
    if forgotten == 0 {
        return Err(Failure::failed(format!(
            "nothing is pinned to \"{subject}\"; give it as the error named it, and the node's --key if it has one"
        )));
    }
    print(format_args!("forgot the key of {subject}"))
}
