STAGES = ("base", "pam", "srl")  # in the order in which they train
