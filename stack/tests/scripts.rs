//! Packet-level scripts: what TCP does with each packet, named by the section that says so.
//!
//! `scripts/language.rs` describes the language. Each script is a test of its own, over both address families
//! where its rule concerns both. `cargo test -p unisockets-stack --test scripts -- deviations --nocapture` lists
//! where we differ from a rule.

#[path = "scripts/bytes.rs"]
mod bytes;
#[path = "scripts/calls.rs"]
mod calls;
#[path = "scripts/language.rs"]
mod language;
#[path = "scripts/run.rs"]
mod run;

use std::fs;
use std::path::{Path, PathBuf};

use language::{Families, Script};
use run::{Follow, Outcome};
use unisockets_stack::Family;

/// Seeds that are tried where a script asks for an initial sequence number.
const SEEDS_MAX: u128 = 1_000_000;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts")
}

/// The scripts: the names of their tests, and their files.
fn files() -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder()).expect("the folder of the scripts is part of the repository");
    let paths = entries.map(|entry| entry.expect("its entries can be read").path());
    let scripts = paths.filter(|path| path.extension().is_some_and(|ending| ending == "script"));
    let name = |path: &PathBuf| {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("their names are plain");
        stem.replace(|c: char| !c.is_ascii_alphanumeric(), "_")
    };
    let mut files: Vec<_> = scripts.map(|path| (name(&path), path)).collect();
    files.sort();
    files
}

fn read(path: &Path) -> Result<Script, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let place = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let script = language::parse(&text).map_err(|mistake| format!("{place}:{}: {}", mistake.line, mistake.what))?;
    let prefix = script.section.to_lowercase().replace("rfc ", "rfc").replace(", ", "-");
    match place.starts_with(&format!("{prefix}-")) {
        true => Ok(script),
        false => Err(format!("{place}: its name does not begin with its section, {prefix}-")),
    }
}

/// Runs a script over one family, with seeds until the initial number fits.
fn run_with_seeds(script: &Script, family: Family, follow: Follow) -> Outcome {
    for seed in 1..SEEDS_MAX {
        match run::run(script, family, seed << 64 | 0x5eed, follow) {
            Outcome::OtherSeed => {}
            outcome => return outcome,
        }
    }
    Outcome::OtherSeed
}

/// Says why a script does not hold, if it does not.
fn verdict(place: &str, script: &Script) -> Result<(), String> {
    let families: &[Family] = match script.families {
        Families::V4 => &[Family::V4],
        Families::V6 => &[Family::V6],
        Families::Both => &[Family::V4, Family::V6],
    };
    for family in families {
        match run_with_seeds(script, *family, Follow::Ours) {
            Outcome::Held => {}
            Outcome::OtherSeed => return Err(format!("{place}: no seed gives such an initial number")),
            Outcome::Failed(failure) => {
                let trace = failure.trace.join("\n    ");
                let (line, text, what) = (failure.line, failure.text, failure.what);
                let rule = &script.rule;
                return Err(format!("{place}:{line}: {text}\n  {what} ({family:?})\n  rule: {rule}\n    {trace}"));
            }
        }
        let Some(deviation) = &script.deviation else {
            continue;
        };
        match run_with_seeds(script, *family, Follow::Rfc) {
            Outcome::Failed(failure) if deviation.rfc.iter().any(|line| line.number == failure.line) => {}
            Outcome::Failed(failure) => return Err(format!("{place}:{}: {}", failure.line, failure.what)),
            Outcome::OtherSeed => return Err(format!("{place}: no seed gives such an initial number")),
            Outcome::Held => {
                return Err(format!(
                    "{place}: over {family:?} we now do what the rule says: take the deviation out of the script and \
                     out of stack/README.md"
                ));
            }
        }
    }
    Ok(())
}

fn hold(name: &str) {
    let (_, path) = files().into_iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no file is {name}"));
    let place = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let result = read(&path).and_then(|script| verdict(&place, &script));
    if let Err(failure) = result {
        panic!("\n{failure}\n");
    }
}

/// Makes a test of each script.
macro_rules! scripts {
    ($($name:ident)*) => {
        const LISTED: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                hold(stringify!($name));
            }
        )*
    };
}

scripts! {
    rfc1122_3_2_1_2_bad_checksum_of_the_header
    rfc1122_4_2_2_18_a_syn_beyond_the_backlog_waits
    rfc1122_4_2_2_18_closing_a_full_listener_refuses_who_waits
    rfc1122_4_2_3_10_a_syn_from_a_group_is_dropped
    rfc1122_4_2_3_5_syns_are_repeated_for_three_minutes
    rfc1122_4_2_3_6_keep_alives_without_an_answer_end
    rfc1122_4_2_3_9_a_hard_error_ends_an_opening
    rfc1122_4_2_3_9_a_soft_error_does_not_end_a_connection
    rfc1122_4_2_3_9_source_quench_is_ignored
    rfc1191_3_a_too_big_error_lowers_the_mtu
    rfc1191_3_an_error_about_a_packet_that_fitted_is_ignored
    rfc1337_3_a_reset_in_time_wait_is_ignored
    rfc1337_3_a_reset_in_time_wait_of_a_held_socket_is_ignored
    rfc2018_2_sack_permitted_only_when_offered
    rfc2018_4_the_first_block_holds_the_newest_segment
    rfc2018_5_what_is_sacked_is_not_repeated
    rfc2525_2_17_data_after_close_is_reset
    rfc2525_2_17_old_data_after_close_is_not_reset
    rfc2525_2_17_the_last_data_after_close_is_reset
    rfc3168_6_1_1_ecn_is_not_negotiated
    rfc5461_4_1_a_soft_error_ends_an_opening
    rfc5482_3_1_the_user_timeout_bounds_the_opening
    rfc5482_3_1_the_user_timeout_ends_a_silent_connection
    rfc5681_2_what_is_no_duplicate
    rfc5681_3_1_one_segment_after_a_timeout
    rfc5681_3_1_slow_start
    rfc5681_3_2_three_duplicates_repeat_a_segment
    rfc5681_4_2_out_of_order_data_is_acknowledged_at_once
    rfc5927_4_1_an_error_about_what_was_not_sent_is_ignored
    rfc5927_5_2_a_hard_error_does_not_end_an_open_connection
    rfc5927_7_2_a_too_big_error_about_what_is_not_in_flight
    rfc5961_3_2_a_reset_beyond_the_announced_window
    rfc5961_3_2_only_the_exact_reset_ends_a_connection
    rfc5961_4_2_a_restarted_peer_ends_the_old_connection
    rfc5961_4_2_a_syn_in_a_connection_is_challenged
    rfc5961_5_2_an_ack_older_than_the_window_is_answered
    rfc5961_7_challenges_are_rationed
    rfc6093_2_1_an_urgent_pointer_without_data_is_harmless
    rfc6093_2_1_urgent_bytes_stay_in_the_stream
    rfc6298_2_a_slow_handshake_is_a_sample
    rfc6298_2_the_first_timeout_is_a_second
    rfc6298_2_the_timeout_follows_the_round_trip
    rfc6298_2_the_timeout_has_a_floor_of_a_second
    rfc6298_3_a_repeated_segment_is_no_sample
    rfc6298_5_a_lost_syn_sets_the_timeout_to_three_seconds
    rfc6298_5_an_ack_of_all_stops_the_timer
    rfc6298_5_an_ack_of_new_data_restarts_the_timer
    rfc6298_5_the_earliest_segment_is_repeated
    rfc6298_5_the_timer_backs_off
    rfc6582_3_2_a_partial_ack_repeats_the_next_segment
    rfc7323_2_2_no_scaling_when_the_peer_did_not_answer
    rfc7323_2_2_no_window_scale_without_the_peer
    rfc7323_2_2_window_scale_is_answered
    rfc7323_2_2_window_scale_is_offered
    rfc7323_2_3_a_shift_above_14_means_14
    rfc7323_3_2_timestamps_are_not_sent_unless_offered_back
    rfc8201_4_a_too_big_error_lowers_the_mtu
    rfc8201_4_no_mtu_below_the_least_of_ipv6
    rfc9293_3_10_4_close_in_syn_received
    rfc9293_3_10_4_close_in_syn_sent
    rfc9293_3_10_4_close_of_a_listener
    rfc9293_3_10_5_a_half_open_connection_ends
    rfc9293_3_10_7_1_a_reset_to_a_closed_port_is_not_answered
    rfc9293_3_10_7_1_a_syn_to_a_closed_port_is_reset
    rfc9293_3_10_7_1_an_ack_to_a_closed_port_is_reset
    rfc9293_3_10_7_2_a_fin_with_a_syn_is_not_taken
    rfc9293_3_10_7_2_data_on_a_syn_is_not_lost
    rfc9293_3_10_7_2_listen_drops_what_is_neither_syn_nor_ack
    rfc9293_3_10_7_2_listen_ignores_a_reset
    rfc9293_3_10_7_2_listen_resets_an_ack
    rfc9293_3_10_7_3_data_on_a_syn_ack_is_not_lost
    rfc9293_3_10_7_3_syn_sent_an_acknowledging_reset_refuses
    rfc9293_3_10_7_3_syn_sent_ignores_an_ack_without_syn
    rfc9293_3_10_7_3_syn_sent_never_answers_a_reset
    rfc9293_3_10_7_3_syn_sent_resets_an_unacceptable_ack
    rfc9293_3_10_7_4_a_fin_before_a_hole_is_kept
    rfc9293_3_10_7_4_a_fin_counts_only_when_all_before_it_has_come
    rfc9293_3_10_7_4_a_fin_that_acknowledges_data_but_not_ours
    rfc9293_3_10_7_4_a_late_ack_does_not_widen_the_window
    rfc9293_3_10_7_4_a_late_fin_in_close_wait_is_acknowledged
    rfc9293_3_10_7_4_a_late_fin_in_closing_is_acknowledged
    rfc9293_3_10_7_4_a_late_fin_in_last_ack_is_acknowledged
    rfc9293_3_10_7_4_a_late_fin_restarts_time_wait
    rfc9293_3_10_7_4_a_repeated_syn_is_answered_in_syn_received
    rfc9293_3_10_7_4_a_reset_in_close_wait
    rfc9293_3_10_7_4_a_reset_in_closing
    rfc9293_3_10_7_4_a_reset_in_fin_wait_1
    rfc9293_3_10_7_4_a_reset_in_fin_wait_2
    rfc9293_3_10_7_4_a_reset_in_last_ack
    rfc9293_3_10_7_4_a_window_update_without_data_is_used
    rfc9293_3_10_7_4_ack_of_something_not_yet_sent
    rfc9293_3_10_7_4_an_ack_beyond_a_zero_window_is_processed
    rfc9293_3_10_7_4_an_old_ack_does_not_hide_its_data
    rfc9293_3_10_7_4_an_old_segment_does_not_shrink_the_window
    rfc9293_3_10_7_4_an_unacceptable_segment_acknowledges_nothing
    rfc9293_3_10_7_4_data_after_a_fin_is_not_read
    rfc9293_3_10_7_4_data_beyond_the_window_is_acknowledged_and_dropped
    rfc9293_3_10_7_4_data_in_a_zero_window_is_dropped_and_acknowledged
    rfc9293_3_10_7_4_fin_wait_1_takes_ack_and_fin_together
    rfc9293_3_10_7_4_fin_wait_2_takes_data_and_fin_together
    rfc9293_3_10_7_4_old_data_is_acknowledged_and_dropped
    rfc9293_3_10_7_4_only_the_part_in_the_window_is_taken
    rfc9293_3_10_7_4_overlapping_segments_give_each_byte_once
    rfc9293_3_10_7_4_segments_without_ack_are_dropped
    rfc9293_3_10_7_4_syn_received_a_reset_of_an_active_opening_refuses
    rfc9293_3_10_7_4_syn_received_a_reset_returns_to_listen
    rfc9293_3_10_7_4_syn_received_resets_an_unacceptable_ack
    rfc9293_3_10_7_4_syn_received_takes_a_fin
    rfc9293_3_10_7_4_time_wait_answers_the_peers_fin
    rfc9293_3_10_7_4_time_wait_of_a_held_socket_answers_every_fin
    rfc9293_3_1_a_data_offset_out_of_range_is_dropped
    rfc9293_3_1_all_flags_and_no_flags_do_no_harm
    rfc9293_3_1_bad_checksum
    rfc9293_3_1_illegal_option_lengths_do_no_harm
    rfc9293_3_1_illegal_options_of_a_syn_open_nothing
    rfc9293_3_1_options_in_any_segment
    rfc9293_3_1_unknown_options_are_ignored
    rfc9293_3_4_our_numbers_wrap
    rfc9293_3_4_our_numbers_wrap_in_a_lost_segment
    rfc9293_3_4_the_peers_numbers_wrap
    rfc9293_3_5_a_handshake_in_which_the_ack_is_lost
    rfc9293_3_5_active_open
    rfc9293_3_5_passive_open
    rfc9293_3_5_simultaneous_open
    rfc9293_3_6_1_a_newer_syn_ends_time_wait
    rfc9293_3_6_1_a_newer_syn_ends_time_wait_of_a_held_socket
    rfc9293_3_6_1_an_older_syn_does_not_end_time_wait
    rfc9293_3_6_1_close_with_unread_data_resets
    rfc9293_3_6_1_time_wait_lasts_four_minutes
    rfc9293_3_6_a_fin_follows_all_that_was_sent
    rfc9293_3_6_a_lost_fin_is_repeated
    rfc9293_3_6_a_lost_fin_is_repeated_beside_a_shut_window
    rfc9293_3_6_active_close
    rfc9293_3_6_passive_close
    rfc9293_3_6_shutdown_of_reading_tells_the_peer_nothing
    rfc9293_3_6_simultaneous_close
    rfc9293_3_6_we_receive_after_our_fin
    rfc9293_3_6_we_send_after_the_peers_fin
    rfc9293_3_7_1_an_mss_of_zero_stalls_nothing
    rfc9293_3_7_1_default_mss_on_ipv4
    rfc9293_3_7_1_default_mss_on_ipv6
    rfc9293_3_7_1_mss_of_one_end_only
    rfc9293_3_7_1_mss_option_on_ipv4
    rfc9293_3_7_1_mss_option_on_ipv6
    rfc9293_3_7_1_the_smaller_mss_counts
    rfc9293_3_7_2_a_smaller_mtu_of_the_path_is_used
    rfc9293_3_7_4_a_fin_ends_the_waiting
    rfc9293_3_7_4_nagle_can_be_switched_off
    rfc9293_3_7_4_nagle_holds_back_a_small_segment
    rfc9293_3_7_4_nagle_lets_full_segments_go
    rfc9293_3_8_3_a_user_timeout_of_an_orphan
    rfc9293_3_8_3_probes_without_an_answer_end
    rfc9293_3_8_3_r2_is_at_least_a_hundred_seconds
    rfc9293_3_8_3_the_peer_of_an_orphan_has_a_minute
    rfc9293_3_8_4_a_dead_peer_is_given_up_after_the_last_probe
    rfc9293_3_8_4_a_keep_alive_of_the_peer_is_answered
    rfc9293_3_8_4_keep_alive_begins_after_its_interval
    rfc9293_3_8_4_keep_alive_is_off_by_default
    rfc9293_3_8_4_keep_alive_probes_an_idle_connection
    rfc9293_3_8_4_keep_alive_waits_two_hours_by_default
    rfc9293_3_8_4_keep_alive_waits_while_data_is_outstanding
    rfc9293_3_8_4_one_lost_keep_alive_ends_nothing
    rfc9293_3_8_6_1_a_peer_that_answers_probes_keeps_its_connection
    rfc9293_3_8_6_1_a_probe_of_our_zero_window_is_answered
    rfc9293_3_8_6_1_a_probed_byte_that_is_taken_counts
    rfc9293_3_8_6_1_a_window_of_zero_from_the_start_is_probed
    rfc9293_3_8_6_1_a_window_that_opens_ends_the_probing
    rfc9293_3_8_6_1_a_zero_window_is_probed
    rfc9293_3_8_6_2_1_the_sender_does_not_send_crumbs
    rfc9293_3_8_6_2_2_a_window_that_has_doubled_is_announced
    rfc9293_3_8_6_2_2_small_window_updates_are_not_announced
    rfc9293_3_8_6_3_acknowledgements_are_delayed_shortly
    rfc9293_3_8_6_3_data_carries_the_acknowledgement
    rfc9293_3_8_6_3_every_second_full_segment_is_acknowledged
    rfc9293_3_8_6_a_shrunk_window_is_survived
    rfc9293_3_9_1_linger_zero_aborts
    rfc9293_3_9_1_the_last_segment_is_pushed
    rfc9293_3_9_2_3_a_syn_from_a_group_is_dropped
    rfc9293_3_9_2_the_hop_limit_is_configurable
}

#[test]
fn every_script_is_listed() {
    let files: Vec<String> = files().into_iter().map(|(name, _)| name).collect();
    let mut listed: Vec<&str> = LISTED.to_vec();
    listed.sort_unstable();
    assert_eq!(listed, files, "this file lists one name for each file");
    assert!(files.len() >= 50);
}

/// Lists the deviations, and holds stack/README.md to them.
#[test]
fn deviations_are_in_the_readme() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("it is there");
    let mut count = 0;
    for (_, path) in files() {
        let script = read(&path).unwrap_or_else(|mistake| panic!("{mistake}"));
        let place = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        let listed = readme.contains(&format!("`{place}`"));
        match &script.deviation {
            Some(deviation) => {
                count += 1;
                println!("{} ({}) {}\n    ours: {}", script.section, script.level, script.rule, deviation.why);
                assert!(listed, "stack/README.md does not name the deviation {place}");
            }
            None => assert!(!listed, "stack/README.md names {place}, which is no deviation"),
        }
    }
    println!("{count} deviations");
    let rows = readme.lines().filter(|line| line.starts_with("| `rfc")).count();
    assert_eq!(rows, count, "stack/README.md has one row for each deviation");
}

mod language_is_strict {
    use super::*;

    const HEADING: &str = "section RFC 1, 1\nrule it is so\nlevel MUST\n";

    fn mistake(lines: &str) -> (usize, String) {
        let mistake = language::parse(&format!("{HEADING}{lines}")).expect_err(lines);
        (mistake.line, mistake.what)
    }

    #[test]
    fn an_unknown_word_is_an_error_with_its_line() {
        let (line, what) = mistake("\n# comment\n< SYN seq 0 widnow 5\n");
        assert_eq!((line, what.as_str()), (6, "unknown word widnow"));
        for lines in [
            "hop 3",
            "< SIN seq 0",
            "< SYN",
            "< ACK seq 1",
            "> SYN seq 0 ack 1",
            "> SYN seq 0 dropped malformed",
            "+5 > ACK seq 1 ack 1",
            "+1s..2s < SYN seq 0",
            "c: sned 5",
            "c: send 5",
            "c: accept",
            "nothing 5",
            "nothing 5ms 6ms",
            "< SYN seq 0 @x",
            "< ICMP gone seq 0",
            "< SYN seq 0 raw-options 0x",
            "c: socket",
            "< SYN seq 0\nsection RFC 2, 2",
            "< SYN seq 0\nmtu 1280",
        ] {
            mistake(lines);
        }
    }

    #[test]
    fn a_deviation_has_both_parts_and_an_end() {
        for lines in [
            "deviation\nrfc\nnothing 1s\nours\nnothing 1s\nend",
            "deviation why\nnothing 1s",
            "deviation why\nrfc\nnothing 1s\nend",
            "deviation why\nrfc\nnothing 1s\nours\nend",
            "deviation why\nrfc\nnothing 1s\nours\nnothing 1s",
        ] {
            mistake(&format!("{lines}\nnothing 1s\n"));
        }
        let whole = "deviation why\nrfc\nnothing 1s\nours\nnothing 1s\nend\nnothing 1s\n";
        assert!(language::parse(&format!("{HEADING}{whole}")).is_ok());
    }

    fn judged(lines: &str) -> Result<(), String> {
        let script = language::parse(&format!("{HEADING}{lines}")).unwrap_or_else(|mistake| panic!("{mistake:?}"));
        verdict("here", &script)
    }

    /// A SYN to a port without a listener is reset.
    #[test]
    fn what_does_not_hold_is_said_with_its_line() {
        let reset = "> RST ACK seq 0 ack 1\n";
        assert_eq!(judged(&format!("< SYN seq 0\n{reset}")), Ok(()));
        for (lines, where_) in [
            ("< SYN seq 0\n> RST ACK seq 0 ack 2\n", "here:5: "),
            ("< SYN seq 0\n> SYN ACK seq 0 ack 1\n", "here:5: "),
            ("< SYN seq 0\n+5ms > RST ACK seq 0 ack 1\n", "here:5: "),
            ("< SYN seq 0\n> RST ACK seq 0 ack 1\n> RST ACK seq 0 ack 1\n", "here:6: "),
            ("< SYN seq 0\nnothing 1s\n", "here:5: "),
            ("nothing 1s\n< SYN seq 0\n", "here:5: "),
        ] {
            let failure = judged(lines).expect_err(lines);
            assert!(failure.starts_with(where_), "{failure}");
        }
    }

    #[test]
    fn a_deviation_that_conforms_is_an_error() {
        let both = |rfc: &str, ours: &str| format!("< SYN seq 0\ndeviation why\nrfc\n{rfc}\nours\n{ours}\nend\n");
        let (reset, silence) = ("> RST ACK seq 0 ack 1", "nothing 1s");
        assert_eq!(judged(&both(silence, reset)), Ok(()));
        assert!(judged(&both(reset, reset)).expect_err("it conforms").contains("we now do what the rule says"));
        assert!(judged(&both(reset, silence)).is_err());
    }
}
