"""Tables of the report, as they stand on its page: numbers with their errors, and what does not vary."""


def test_numbers_are_rounded_with_their_errors(report, finished_run):
    page = report(finished_run)
    summary, paired, means = page.tables
    header, *rows = summary
    first_frame = header.index("PSNR, first frame (dB)")
    # Videos differ by 1 dB: standard error 0.5.
    assert [row[first_frame] for row in rows] == ["16.50 ± 0.50", "17.50 ± 0.50", "17.50 ± 0.50", "25.50 ± 0.50"]
    assert rows[0][header.index("SSIM")] == "0.505 ± 0.005"
    assert rows[0][header.index("PSNR, first frame (dB), bicubic")] == "16.00"
    assert paired == [["PSNR, first frame (dB), random minus sequential"], ["0.00"]]
    assert len(means) == 1 + 8
    assert not [cell for cell in header if cell.endswith("_se")]
    assert "scale factor 4" in " ".join(page.text.split()), "what does not vary stands above the table"
    assert "8 restorations of 3 videos × 1 noise instance; 1 failed" in page.text


def test_settings_that_quoted_rows_lack_stand_last(report, run_copy):
    (run_copy / "table1.csv").write_text("zeta,factor,method,psnr,psnr_se\n13,4,ours,24,0.5\n,8,quoted,27.44,\n")
    table = report(run_copy).tables[1]
    assert table[0] == ["scale factor", "method", "PSNR (dB)", "zeta"]
    assert table[1:] == [["4", "ours", "24.00 ± 0.50", "13"], ["8", "quoted", "27.44", ""]]
