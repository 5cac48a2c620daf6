"""Where, when and why a student differs from its teacher: errors by timestep and by place, sharpness of the loss."""

RESULT = "diagnosis.json"
