from calibration.suggest import did_you_mean


def test_only_a_near_name_is_suggested():
    names = ("rtn", "gptq", "awq", 128)
    assert did_you_mean("agw", names) == "; did you mean awq?"
    assert did_you_mean(129, names) == "; did you mean 128?"
    assert did_you_mean("magic", names) == ""
