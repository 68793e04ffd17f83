//! Runs one input again, given as a file or in hexadecimal digits: `cargo run --example replay TARGET INPUT`.

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, input] = &arguments[..] else {
        panic!("replay TARGET FILE|HEX");
    };
    let target = unisockets_fuzz::TARGETS.iter().find(|target| target.name == name).expect("a target has that name");
    let bytes = std::fs::read(input).unwrap_or_else(|_| {
        let digits = |at: usize| input.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        (0..input.len()).step_by(2).map(|at| digits(at).expect("it is a file, or hexadecimal digits")).collect()
    });
    (target.run)(&bytes);
}
